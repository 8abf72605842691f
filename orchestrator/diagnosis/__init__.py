"""Check that everything orch needs is in order: this machine, and the servers. Start reading at `checks.run_checks`."""
