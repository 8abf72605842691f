"""Fits in the database, and the inputs of a forecast that are read from it."""
