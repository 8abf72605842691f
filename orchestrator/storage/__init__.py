"""Activation caches, their rows in the database, and what of a data folder may be deleted. Start at `garbage`."""
