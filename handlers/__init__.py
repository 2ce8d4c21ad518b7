"""What should happen: pure deciders, the flows of jobs, projections; `runtime` is the only writer of the log."""
