"""How people reach Storebus: HTTP, the command line, and how a process is put together. Decides nothing about storage."""
