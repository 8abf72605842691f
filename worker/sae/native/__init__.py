"""Kernels in C of a training step and of an encoder on a CPU; plain torch does the same where there is no compiler."""
