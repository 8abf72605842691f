"""The training step as one graph of fixed shapes, for GPUs, and the kernels it may use."""
