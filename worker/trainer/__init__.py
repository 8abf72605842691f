"""One order of jobs, trained in a process that knows no database. Start at `__main__`; `train` is the loop."""
