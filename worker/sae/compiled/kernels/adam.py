"""The optimiser's whole step over one parameter as one visit to memory: every value is read once and written once."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

_FLAT = 1024
"""Columns of the matrix that a parameter without rows of its own is taken for."""


@triton.jit
@no_type_check
def adam_kernel(
    weights, gradient, exp_avg, exp_avg_sq, average, scalars, squares, n_values, width,
    beta1: tl.constexpr, beta2: tl.constexpr, eps: tl.constexpr,
    SPHERE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Take the step for ROWS rows; write the sum of their squared gradients, projected and unclipped.

    The constants are known to the compiler: 1 − β₂ is taken in float64, where float32 would be 5e-5 off.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    at = rows[:, None] * width + columns[None, :]
    inside = (columns < width)[None, :] & (at < n_values)
    w = tl.load(weights + at, mask=inside, other=0.0)
    g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(exp_avg + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    mean = tl.load(average + at, mask=inside, other=0.0)
    if SPHERE:
        g -= tl.sum(g * w, axis=1)[:, None] * w
    tl.store(squares + tl.program_id(0), tl.sum(tl.sum(g * g, axis=1), axis=0))
    step_size, root, scale = tl.load(scalars), tl.load(scalars + 1), tl.load(scalars + 2)
    share = tl.load(scalars + 3)
    g *= scale
    m += (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g
    w -= step_size * m / (tl.sqrt(v) / root + eps)
    if SPHERE:
        w /= tl.where(inside, tl.sqrt(tl.sum(w * w, axis=1))[:, None], 1.0)
    mean += share * (w - mean)
    tl.store(weights + at, w, mask=inside)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    tl.store(average + at, mean, mask=inside)


@triton.jit
@no_type_check
def squares_kernel(
    weights, gradient, squares, n_values, width, SPHERE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Write the sum of squares of ROWS rows of the gradient, projected if SPHERE."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    at = rows[:, None] * width + columns[None, :]
    inside = (columns < width)[None, :] & (at < n_values)
    g = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
    if SPHERE:
        w = tl.load(weights + at, mask=inside, other=0.0)
        g -= tl.sum(g * w, axis=1)[:, None] * w
    tl.store(squares + tl.program_id(0), tl.sum(tl.sum(g * g, axis=1), axis=0))


@torch.library.custom_op("orch::adam", mutates_args=("weights", "exp_avg", "exp_avg_sq", "average"))
def adam(
    weights: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    average: Tensor,
    scalars: Tensor,
    *,
    betas: list[float],
    eps: float,
    sphere: bool,
) -> Tensor:
    """Take one step in place; return Σ g² of the gradient, projected and unscaled. `sphere`: rows (n, D) of unit norm.

    g ← scale · (g − ⟨g, w⟩ w); m ← β₁ m + (1 − β₁) g; v ← β₂ v + (1 − β₂) g²; w ← w − s · m / (√v / r + ε);
    w ← w / ‖w‖; average ← average + share · (w − average); without ⟨g, w⟩ w and w / ‖w‖ if not `sphere`. `scalars` is
    (s, r, scale, share) = (lr / (1 − β₁^t), √(1 − β₂^t), clip scale, 1 − ema), float32 on the device: neither a new
    step nor a clip makes the host wait or compiles anything again.
    Floor: 36 bytes per parameter: w, g, m, v, average read, w, m, v, average written; about 20 operations each.
    """
    blocks, width, sizes = _layout(weights, sphere)
    squares = scalars.new_empty(blocks)
    if blocks:
        adam_kernel[blocks,](
            weights, gradient.contiguous(), exp_avg, exp_avg_sq, average, scalars, squares,
            weights.numel(), width, beta1=betas[0], beta2=betas[1], eps=eps, SPHERE=sphere, **sizes,
        )  # fmt: skip
    return squares.sum()


@torch.library.custom_op("orch::gradient_squares", mutates_args=())
def gradient_squares(weights: Tensor, gradient: Tensor, *, sphere: bool) -> Tensor:
    """Return the Σ g² that `adam` would, and change nothing: a clip must know it of all parameters first.

    Floor: reads the gradient, and w if `sphere`: 4 or 8 bytes per parameter.
    """
    blocks, width, sizes = _layout(weights, sphere)
    squares = weights.new_empty(blocks, dtype=torch.float32)
    if blocks:
        arguments = (weights, gradient.contiguous(), squares, weights.numel(), width)
        squares_kernel[blocks,](*arguments, SPHERE=sphere, **sizes)
    return squares.sum()


def _layout(weights: Tensor, sphere: bool) -> tuple[int, int, dict[str, int]]:
    """Return the number of programs, the row length, and the sizes of a program: about 2,048 values."""
    if not weights.is_contiguous():
        raise ValueError("the optimiser's kernels work in place on contiguous parameters")
    width = weights.shape[1] if sphere else _FLAT
    columns = triton.next_power_of_2(width)
    rows = max(1, 2048 // columns)
    warps = max(4, min(16, columns // 512))
    sizes = {"ROWS": rows, "COLUMNS": columns, "num_warps": warps, "enable_fp_fusion": True}
    return triton.cdiv(weights.numel(), rows * width), width, sizes


@adam.register_fake
def _(
    weights: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    average: Tensor,
    scalars: Tensor,
    *,
    betas: list[float],
    eps: float,
    sphere: bool,
) -> Tensor:
    return scalars.new_empty(())


@gradient_squares.register_fake
def _(weights: Tensor, gradient: Tensor, *, sphere: bool) -> Tensor:
    return weights.new_empty((), dtype=torch.float32)
