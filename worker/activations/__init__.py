"""Tokens to batches of activations: capture, held-out split, shuffle, cache. Uses data, subject; start at `source`."""
