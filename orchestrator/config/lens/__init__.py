"""Tuned lenses: what is known of one without its weights. Start at `facts`."""
