"""Tokens to batches of activations: capture, held-out split, shuffle, cache. Start at `stream`."""
