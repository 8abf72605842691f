"""The gradients of W_enc, b_enc, W_dec in ONE pass over what was chosen, sorted by (latent, token): always the same.

One program per latent and chunk of its tokens, so that a latent that fires on every token keeps no one waiting; where a
latent has more than a chunk, a second pass adds the parts in their order. No atomics. The launch grids follow from the
shapes alone, so the host never waits. Latents that nothing chose get rows of zeros.
"""

from typing import Any, NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

_WIDEST = 4096
"""Largest d_model whose whole row one program holds, which the fused inner product needs."""


@triton.jit
@no_type_check
def rows_kernel(
    acts, by_acts, order, starts, owners, extras, gradient, centred, W_dec,
    dec, enc, bias, dec_parts, enc_parts, bias_parts, n_latents, n_extra, k, d_model, chunk,
    FUSED: tl.constexpr, ADD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum act · gradient and ∂act · centred over one chunk of one latent's tokens."""
    unit = tl.program_id(0)
    # Extra chunks first: they are full, so they must not start last.
    if unit < n_extra:
        latent = tl.load(owners + unit)
        piece = unit - tl.load(extras + latent) + 1
    else:
        latent = (unit - n_extra).to(tl.int64)
        piece = (unit * 0).to(tl.int64)
    if latent < n_latents:
        begin = tl.load(starts + latent) + piece * chunk
        end = tl.minimum(tl.load(starts + latent + 1), begin + chunk)
        columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        inside = columns < d_model
        if FUSED:
            row = tl.load(W_dec + latent * d_model + columns, mask=inside, other=0.0).to(tl.float32)
        dec_sum, enc_sum = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
        bias_sum = tl.zeros([BLOCK_T], tl.float32)
        for position in range(begin, end, BLOCK_T):
            places = position + tl.arange(0, BLOCK_T)
            there = places < end
            flat = tl.load(order + places, mask=there, other=0)
            act = tl.load(acts + flat, mask=there, other=0.0).to(tl.float32)
            at = (flat // k)[:, None] * d_model + columns[None, :]
            mask = there[:, None] & inside[None, :]
            g = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32)
            v = tl.load(centred + at, mask=mask, other=0.0).to(tl.float32)
            if FUSED:
                # ReLU as torch has it: what is not ≤ 0, NaN too, passes the gradient on.
                by_act = tl.where(act <= 0, 0.0, tl.sum(g * row[None, :], axis=1))
            else:
                by_act = tl.load(by_acts + flat, mask=there, other=0.0).to(tl.float32)
            dec_sum += tl.sum(act[:, None] * g, axis=0)
            enc_sum += tl.sum(by_act[:, None] * v, axis=0)
            bias_sum += by_act
        if unit < n_extra:
            tl.store(dec_parts + unit.to(tl.int64) * d_model + columns, dec_sum, mask=inside)
            tl.store(enc_parts + unit.to(tl.int64) * d_model + columns, enc_sum, mask=inside)
            tl.store(bias_parts + unit, tl.sum(bias_sum, axis=0))
        elif (end > begin) | (not ADD):
            total = tl.sum(bias_sum, axis=0)
            if ADD:
                dec_sum += tl.load(dec + latent * d_model + columns, mask=inside, other=0.0)
                enc_sum += tl.load(enc + latent * d_model + columns, mask=inside, other=0.0)
                total += tl.load(bias + latent)
            tl.store(dec + latent * d_model + columns, dec_sum, mask=inside)
            tl.store(enc + latent * d_model + columns, enc_sum, mask=inside)
            # Added to once: the other blocks of columns would add the same again.
            if tl.program_id(1) == 0:
                tl.store(bias + latent, total)


@triton.jit
@no_type_check
def parts_kernel(
    owners, extras, dec, enc, bias, dec_parts, enc_parts, bias_parts, n_latents, d_model, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Add the parts of one latent to its row, first to last; the program of its first part does it."""
    slot = tl.program_id(0)
    latent = tl.load(owners + slot)
    if latent < n_latents:
        first = tl.load(extras + latent)
        if slot == first:
            last = tl.load(extras + latent + 1)
            columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
            inside = columns < d_model
            dec_sum = tl.load(dec + latent * d_model + columns, mask=inside, other=0.0)
            enc_sum = tl.load(enc + latent * d_model + columns, mask=inside, other=0.0)
            for part in range(first, last):
                dec_sum += tl.load(dec_parts + part * d_model + columns, mask=inside, other=0.0)
                enc_sum += tl.load(enc_parts + part * d_model + columns, mask=inside, other=0.0)
            tl.store(dec + latent * d_model + columns, dec_sum, mask=inside)
            tl.store(enc + latent * d_model + columns, enc_sum, mask=inside)
            if tl.program_id(1) == 0:
                total = tl.load(bias + latent)
                for part in range(first, last):
                    total += tl.load(bias_parts + part)
                tl.store(bias + latent, total)


class Gradients(NamedTuple):
    """What one pass gives, in float32."""

    W_dec: Tensor
    W_enc: Tensor
    b_enc: Tensor


@torch.library.custom_op("orch::latent_gradients", mutates_args=())
def latent_gradients(
    top_acts: Tensor, top_indices: Tensor, gradient: Tensor, centred: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ∂W_dec, ∂W_enc, ∂b_enc where ∂/∂x̂ is `gradient`, x̂ = Σ relu(a) · W_dec[i], a = ⟨centred, W_enc[i]⟩ + b.

    ∂a = ⟨gradient, W_dec[i]⟩ where act > 0 comes from the load that ∂W_dec needs anyway: 2·B·k rows are read instead of
    3, which is better wherever a row fits into one program (d_model ≤ 4096; above it two passes are made).
    Floor: 6·B·k·D operations; reads 2·B·D (2·B·k·D where they do not stay in L2), n·D of W_dec, B·k (act, index), and
    writes 2·n·D, which is the larger part for n > B.
    """
    out = _empty(W_dec)
    _sum(top_acts, top_indices, gradient, centred, W_dec, into=out, add=False)
    return out.W_dec, out.W_enc, out.b_enc


@torch.library.custom_op("orch::add_latent_gradients", mutates_args=("into_W_dec", "into_W_enc", "into_b_enc"))
def add_latent_gradients(
    top_acts: Tensor,
    top_indices: Tensor,
    gradient: Tensor,
    centred: Tensor,
    W_dec: Tensor,
    into_W_dec: Tensor,
    into_W_enc: Tensor,
    into_b_enc: Tensor,
) -> None:
    """Add what `latent_gradients` returns to three float32 tensors; touches the rows of chosen latents alone (AuxK)."""
    into = Gradients(into_W_dec, into_W_enc, into_b_enc)
    _sum(top_acts, top_indices, gradient, centred, W_dec, into=into, add=True)


@torch.library.custom_op("orch::sums_by_latent", mutates_args=())
def sums_by_latent(
    top_acts: Tensor, by_acts: Tensor, top_indices: Tensor, gradient: Tensor, centred: Tensor, *, n_latents: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ act · gradient, Σ ∂act · centred and Σ ∂act by latent, from ∂act that is known already (multi_topk).

    Floor: 4·B·k·D operations; bytes as `latent_gradients`, without W_dec.
    """
    out = _empty(gradient.new_empty(n_latents, gradient.shape[1]))
    _sum(top_acts, top_indices, gradient, centred, None, into=out, add=False, by_acts=by_acts)
    return out.W_dec, out.W_enc, out.b_enc


class _Plan(NamedTuple):
    """Which program sums what: (order, starts) as in sparse.ByLatent, and the chunks after a latent's first."""

    order: Tensor
    starts: Tensor
    owners: Tensor
    """Latent of each extra chunk; n_latents where there is none."""
    extras: Tensor
    """First extra chunk of each latent."""


def plan(top_indices: Tensor, n_latents: int, *, chunk: int) -> _Plan:
    """Cut what the tokens chose into chunks of one latent each."""
    flat = top_indices.flatten()
    # Half the passes of the radix sort for half the bytes.
    latents, order = flat.to(torch.int32).sort(stable=True)
    bounds = torch.arange(n_latents + 1, device=flat.device, dtype=torch.int32)
    starts = torch.searchsorted(latents, bounds)
    extras = torch.zeros_like(starts)
    torch.cumsum((starts.diff() - 1).clamp_(min=0) // chunk, 0, out=extras[1:])
    slots = torch.arange((flat.numel() - 1) // chunk, device=flat.device)
    return _Plan(order, starts, torch.searchsorted(extras[1:], slots, right=True), extras)


def chunk_size(n_chosen: int) -> int:
    """Return how many tokens one program sums: 64, or more so that the parts' memory stays below 4,096 rows."""
    return max(64, 1 << (n_chosen // 4096).bit_length())


def _empty(like: Tensor) -> Gradients:
    empty = like.new_empty(like.shape, dtype=torch.float32)
    return Gradients(empty, torch.empty_like(empty), empty.new_empty(len(like)))


def _sum(
    top_acts: Tensor,
    top_indices: Tensor,
    gradient: Tensor,
    centred: Tensor,
    W_dec: Tensor | None,
    *,
    into: Gradients,
    add: bool,
    by_acts: Tensor | None = None,
) -> None:
    if W_dec is not None and gradient.shape[1] > _WIDEST:
        from worker.sae.compiled.kernels.bags import sampled_product

        by_acts = sampled_product(gradient, top_indices, W_dec).masked_fill_(top_acts <= 0, 0.0)
    (n_latents, d_model), k = into.W_dec.shape, top_indices.shape[1]
    fused = by_acts is None
    block_d = triton.next_power_of_2(d_model) if fused else min(1024, triton.next_power_of_2(d_model))
    chunk = chunk_size(top_indices.numel())
    order, starts, owners, extras = plan(top_indices, n_latents, chunk=chunk)
    parts = [into.W_dec.new_empty(len(owners), d_model) for _ in range(2)]
    parts.append(into.b_enc.new_empty(len(owners)))
    acts, gradient, centred = top_acts.contiguous(), gradient.contiguous(), centred.contiguous()
    tensors: tuple[Any, ...] = (acts, acts if by_acts is None else by_acts.contiguous())
    tensors += (order, starts, owners, extras, gradient, centred, gradient if W_dec is None else W_dec.contiguous())
    grid = (n_latents + len(owners), triton.cdiv(d_model, block_d))
    rows_kernel[grid](
        *tensors, *into, *parts, n_latents, len(owners), k, d_model, chunk,
        FUSED=fused, ADD=add, BLOCK_T=max(2, min(16, 4096 // block_d)), BLOCK_D=block_d,
        num_warps=4 if block_d <= 1024 else 8, enable_fp_fusion=True,
    )  # fmt: skip
    if len(owners):
        block_d = min(512, triton.next_power_of_2(d_model))
        grid = (len(owners), triton.cdiv(d_model, block_d))
        tensors = (owners, extras, *into, *parts)
        parts_kernel[grid](*tensors, n_latents, d_model, BLOCK_D=block_d, num_warps=4, enable_fp_fusion=True)


@latent_gradients.register_fake
def _(
    top_acts: Tensor, top_indices: Tensor, gradient: Tensor, centred: Tensor, W_dec: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    out = _empty(W_dec)
    return out.W_dec, out.W_enc, out.b_enc


@sums_by_latent.register_fake
def _(
    top_acts: Tensor, by_acts: Tensor, top_indices: Tensor, gradient: Tensor, centred: Tensor, *, n_latents: int
) -> tuple[Tensor, Tensor, Tensor]:
    out = _empty(gradient.new_empty(n_latents, gradient.shape[1]))
    return out.W_dec, out.W_enc, out.b_enc
