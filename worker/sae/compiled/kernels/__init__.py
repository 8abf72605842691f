"""Triton kernels for CUDA, one file per part of a step; `autotune` alone imports them, if Triton is there."""
