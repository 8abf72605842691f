"""MLflow, computed from the database. Start at `shipper`."""
