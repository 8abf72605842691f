"""The language model: its files, its hook points, its activations. Start at `model`."""
