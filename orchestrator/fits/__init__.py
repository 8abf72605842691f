"""Fits in the database: stored, read again, and gathered as the inputs of a forecast. Start at `store`."""
