"""Tuned lenses: affine maps of the residual stream. Start at `tuned_lens`; uses formats, subject and data."""
