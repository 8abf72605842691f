"""Claims, leases and trainer processes; loads no torch. Start at `supervisor`."""
