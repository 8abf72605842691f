"""One program per token: sparse decode, its error, sampled product. Nothing of n_tokens × k × d_model exists.

Both read k rows of d_model per token in blocks of 16 bytes per thread, several rows in flight before the first is used,
and accumulate in float32. An activation of 0 is multiplied all the same: a NaN or ∞ in a chosen row is never hidden.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
@no_type_check
def decode_kernel(
    acts, indices, rows, bias, x, out, squares, k, d_model,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_X: tl.constexpr,
):  # fmt: skip
    """Write Σ_j act · row (+ bias) of one token, or x minus it and the sum of its squares over these columns."""
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = block * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = columns < d_model
    total = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, k, BLOCK_K):
        slots = start + tl.arange(0, BLOCK_K)
        there = slots < k
        latents = tl.load(indices + token * k + slots, mask=there, other=0).to(tl.int64)
        weights = tl.load(acts + token * k + slots, mask=there, other=0.0).to(tl.float32)
        places = latents[:, None] * d_model + columns[None, :]
        tile = tl.load(rows + places, mask=there[:, None] & inside[None, :], other=0.0)
        total += tl.sum(weights[:, None] * tile.to(tl.float32), axis=0)
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_X:
        total = tl.load(x + token * d_model + columns, mask=inside, other=0.0).to(tl.float32) - total
        tl.store(squares + token * tl.num_programs(1) + block, tl.sum(total * total, axis=0))
    tl.store(out + token * d_model + columns, total, mask=inside)


@triton.jit
@no_type_check
def sampled_kernel(
    rows, indices, table, out, k, d_model, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Write ⟨row of this token, table[i]⟩ for BLOCK_K of the token's indices."""
    token = tl.program_id(0).to(tl.int64)
    slots = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    there = slots < k
    latents = tl.load(indices + token * k + slots, mask=there, other=0).to(tl.int64)
    # Summed over columns once, at the end: a sum across a warp costs five exchanges.
    total = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for start in range(0, d_model, BLOCK_D):
        columns = start + tl.arange(0, BLOCK_D)
        inside = columns < d_model
        row = tl.load(rows + token * d_model + columns, mask=inside, other=0.0).to(tl.float32)
        places = latents[:, None] * d_model + columns[None, :]
        tile = tl.load(table + places, mask=there[:, None] & inside[None, :], other=0.0)
        total += tile.to(tl.float32) * row[None, :]
    tl.store(out + token * k + slots, tl.sum(total, axis=1), mask=there)


@torch.library.custom_op("orch::decode", mutates_args=())
def decode(top_acts: Tensor, top_indices: Tensor, W_dec: Tensor) -> Tensor:
    """Return Σ_j top_acts[:, j] · W_dec[top_indices[:, j]] in float32, without b_pre.

    Floor: 2·B·k·D operations; reads min(B·k, n)·D of W_dec (B·k·D where it does not stay in L2) and B·k (act, index),
    writes B·D.
    """
    out = top_acts.new_empty(len(top_acts), W_dec.shape[1], dtype=torch.float32)
    _decode(top_acts, top_indices, W_dec, out, {})
    return out


@torch.library.custom_op("orch::reconstruction_error", mutates_args=())
def reconstruction_error(
    x: Tensor, top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_pre: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x − x̂ (n_tokens, d_model) and its squared norm per token, in float32.

    Floor: that of `decode` and B·D of x read; x̂ itself is never written.
    """
    out = x.new_empty(x.shape, dtype=torch.float32)
    parts = out.new_empty(len(x), triton.cdiv(x.shape[1], _columns(x.shape[1])))
    _decode(top_acts, top_indices, W_dec, out, {"bias": b_pre, "x": x.contiguous(), "squares": parts})
    return out, parts.sum(1)


@torch.library.custom_op("orch::sampled_product", mutates_args=())
def sampled_product(rows: Tensor, top_indices: Tensor, W: Tensor) -> Tensor:
    """Return ⟨row, W[i]⟩ (n_tokens, k) in float32 at each chosen latent i; for any k, without a dense product.

    With W_dec and ∂/∂x̂ it is the gradient in the activations. Floor: 2·B·k·D operations; reads min(B·k, n)·D of W
    (B·k·D where it does not stay in L2), B·D of rows and B·k indices, writes B·k.
    """
    (n_tokens, k), d_model = top_indices.shape, W.shape[1]
    out = rows.new_empty(n_tokens, k, dtype=torch.float32)
    if out.numel():
        sizes = {"BLOCK_K": min(16, triton.next_power_of_2(k)), "BLOCK_D": min(128, triton.next_power_of_2(d_model))}
        arguments = (rows.contiguous(), top_indices.contiguous(), W.contiguous(), out, k, d_model)
        grid = (n_tokens, triton.cdiv(k, sizes["BLOCK_K"]))
        sampled_kernel[grid](*arguments, **sizes, num_warps=4, enable_fp_fusion=True)
    return out


def _decode(top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, out: Tensor, more: dict[str, Any]) -> None:
    n_tokens, k = top_indices.shape
    d_model = W_dec.shape[1]
    if not out.numel():
        return
    tensors = {"acts": top_acts.contiguous(), "indices": top_indices.contiguous(), "rows": W_dec.contiguous()}
    tensors |= {name: more.get(name, out) for name in ("bias", "x", "squares")}
    block_d = _columns(d_model)
    decode_kernel[n_tokens, triton.cdiv(d_model, block_d)](
        **tensors,
        out=out,
        k=k,
        d_model=d_model,
        BLOCK_K=min(4, triton.next_power_of_2(k)),
        BLOCK_D=block_d,
        HAS_BIAS="bias" in more,
        HAS_X="x" in more,
        num_warps=4 if block_d >= 512 else 2,
        enable_fp_fusion=True,
    )


def _columns(d_model: int) -> int:
    """Return the columns of one program: 512 are 16 bytes for each thread of four warps."""
    return min(512, 1 << (d_model - 1).bit_length())


@decode.register_fake
def _(top_acts: Tensor, top_indices: Tensor, W_dec: Tensor) -> Tensor:
    return top_acts.new_empty(top_acts.shape[0], W_dec.shape[1], dtype=torch.float32)


@reconstruction_error.register_fake
def _(x: Tensor, top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_pre: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.float32), x.new_empty(x.shape[0], dtype=torch.float32)


@sampled_product.register_fake
def _(rows: Tensor, top_indices: Tensor, W: Tensor) -> Tensor:
    return rows.new_empty(top_indices.shape, dtype=torch.float32)
