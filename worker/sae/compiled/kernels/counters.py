"""For how many tokens each latent has been silent, without a value for every (token, chosen latent)."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

_SIZE = 1024


@triton.jit
@no_type_check
def last_kernel(acts, indices, last, n_chosen, k, SIZE: tl.constexpr):
    """Raise `last` of each latent that fired to its token's number, from 1: integers, so any order gives the same."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    there = at < n_chosen
    fired = tl.load(acts + at, mask=there, other=0.0) > 0
    latents = tl.load(indices + at, mask=there, other=0)
    tl.atomic_max(last + latents, (at // k + 1).to(tl.int32), mask=there & fired, sem="relaxed")


@triton.jit
@no_type_check
def since_fired_kernel(last, before, after, n_latents, n_tokens, SIZE: tl.constexpr):
    """Count on from the last token that fired, or from `before` where none did."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    there = at < n_latents
    place = tl.load(last + at, mask=there, other=0)
    silent = tl.load(before + at, mask=there, other=0)
    tl.store(after + at, tl.where(place > 0, 0 - place, silent) + n_tokens, mask=there)


@torch.library.custom_op("orch::count_tokens_since_fired", mutates_args=())
def count_tokens_since_fired(top_acts: Tensor, top_indices: Tensor, tokens_since_fired: Tensor) -> Tensor:
    """Return tokens_since_fired (n_latents,) after this batch, counted to the token.

    Floor: reads B·k (act, index) and n counts, writes n counts; the maxima of n int32 stay in L2.
    """
    n_tokens, k = top_indices.shape
    n_latents = len(tokens_since_fired)
    last = torch.zeros(n_latents, dtype=torch.int32, device=top_acts.device)
    after = torch.empty_like(tokens_since_fired)
    if top_acts.numel():
        grid = (triton.cdiv(top_acts.numel(), _SIZE),)
        chosen = (top_acts.contiguous(), top_indices.contiguous())
        last_kernel[grid](*chosen, last, top_acts.numel(), k, SIZE=_SIZE, enable_fp_fusion=True)
    grid = (triton.cdiv(n_latents, _SIZE),)
    since_fired_kernel[grid](
        last, tokens_since_fired.contiguous(), after, n_latents, n_tokens, SIZE=_SIZE, enable_fp_fusion=True
    )
    return after


@count_tokens_since_fired.register_fake
def _(top_acts: Tensor, top_indices: Tensor, tokens_since_fired: Tensor) -> Tensor:
    return torch.empty_like(tokens_since_fired)
