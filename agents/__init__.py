"""Who does the work: agents beside hypervisors and stores. Meets handlers only in schema."""
