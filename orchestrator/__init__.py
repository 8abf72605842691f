"""Plan and read: configs, sweeps, the database, the queue and the command line."""
