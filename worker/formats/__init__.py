"""Trained autoencoders as files: our own format first."""
