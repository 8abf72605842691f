"""Triton kernels for CUDA, one file per part of a step; `worker.sae.choice` alone imports them, if Triton is there."""
