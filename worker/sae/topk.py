"""Exact selection: the k largest pre-activations of a token, or of a whole batch."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worker.sae.native.kernels import kernels_for
from worker.sae.sparse import sampled_product

_BLOCK = 64
"""Latents per block of the selection in stages."""
_GROUP = 8
"""Candidates per group of its second stage: one from each eighth of them, so that the maxima are those of rows."""
_ROWS = 256
"""Tokens of one round of the stages in float32, twice as many in bfloat16."""
_PARTIAL = 64
"""Of fewer than 64 values for each of the k wanted torch.topk sorts more than it must: 1.2 ms against 0.5."""
_WORTH = 4
"""Stages pay where the blocks that can hold the k largest are at most this part of all: at n = 16,384, 2,048 tokens and
two cores torch.topk took 34 ms, two stages 21 and three 17 for k = 32; at n = 4,096 it took 7 against 8."""


@torch.no_grad()
def top_k(pre_acts: Float[Tensor, "n_tokens n_latents"], k: int) -> Int[Tensor, "n_tokens k"]:
    """Return where the k largest SIGNED values of each row are: largest first, of equal ones the lower index first.

    On a GPU, where to look is to wait, which of several values equal to the k-th are taken is left to torch.
    """
    kernels = kernels_for(pre_acts, k=k)
    return kernels.top_k(pre_acts, k)[1] if kernels else plain_top_k(pre_acts, k)


@torch.no_grad()
def top_values(
    pre_acts: Float[Tensor, "n_tokens n_latents"], k: int
) -> tuple[Float[Tensor, "n_tokens k"], Int[Tensor, "n_tokens k"]]:
    """Return the values that `top_k` selects, and where they are."""
    if kernels := kernels_for(pre_acts, k=k):
        return kernels.top_k(pre_acts, k)
    indices = plain_top_k(pre_acts, k)
    return pre_acts.gather(1, indices), indices


def plain_top_k(pre_acts: Float[Tensor, "n_tokens n_latents"], k: int) -> Int[Tensor, "n_tokens k"]:
    """Do what `top_k` does in plain torch."""
    if pre_acts.is_cuda or torch.compiler.is_compiling():
        return in_order(*largest(pre_acts, k))
    # With one more than asked two neighbours tell of every tie that matters, also of one at the edge.
    one_more = min(k + 1, pre_acts.shape[1])
    looks = k if k * _PARTIAL <= pre_acts.shape[1] < one_more * _PARTIAL else one_more
    values, indices = largest(pre_acts, looks)
    tied = (values[:, 1:] == values[:, :-1]).any(1)
    if looks < one_more and (pre_acts >= values[:, -1:]).count_nonzero() > indices.numel():
        tied |= (pre_acts >= values[:, -1:]).sum(1) > k
    if tied.any():
        exact = pre_acts[tied].sort(dim=1, descending=True, stable=True).indices
        indices[tied] = exact[:, : indices.shape[1]]
    return indices[:, :k].contiguous()


def in_order(values: Float[Tensor, "n_tokens k"], indices: Int[Tensor, "n_tokens k"]) -> Int[Tensor, "n_tokens k"]:
    """Return the places of selected values with the largest first, and of equal ones the lower index."""
    indices, order = indices.sort(dim=1)
    return indices.gather(1, values.gather(1, order).sort(dim=1, descending=True, stable=True).indices)


@torch.no_grad()
def largest(
    pre_acts: Float[Tensor, "n_tokens n_latents"], k: int, *, ordered: bool = True
) -> tuple[Float[Tensor, "n_tokens k"], Int[Tensor, "n_tokens k"]]:
    """Return the k largest values of each row and their places, equal values in any order; of bfloat16 no NaN."""
    if pre_acts.dtype == torch.bfloat16 and not (pre_acts.is_cuda or torch.compiler.is_compiling()):
        # Positive bfloat16 numbers are in the order of their bits, below them all negative ones; integers are compared
        # faster: 55 ms against 87 at n = 16,384, k = 64, 2,048 tokens and one core.
        bits, indices = _in_stages(pre_acts.view(torch.int16), k, ordered=ordered)
        if bits.amin() > 0:
            return bits.view(pre_acts.dtype), indices
    return _in_stages(pre_acts, k, ordered=ordered)


def _in_stages(values: Tensor, k: int, *, ordered: bool) -> tuple[Tensor, Int[Tensor, "n_tokens k"]]:
    """Do what torch.topk does, faster where it can be: the k blocks with the largest maxima hold the k largest values,
    and of those blocks' values the k groups with the largest maxima do.
    """
    n_tokens, n_latents = values.shape
    if n_latents % _BLOCK or k * _BLOCK * _WORTH > n_latents or not values.is_contiguous():
        found, indices = torch.topk(values, k, dim=1, sorted=ordered)
        return found, indices
    n_rows = _ROWS * 4 // values.element_size()
    if (
        n_tokens > n_rows and not values.is_cuda
    ):  # what is looked at twice is still in the cache, and candidates are few
        parts = [_in_stages(part, k, ordered=ordered) for part in torch.split(values, n_rows)]
        return torch.cat([found for found, _ in parts]), torch.cat([indices for _, indices in parts])
    blocks = values.view(-1, _BLOCK)
    per_token = n_latents // _BLOCK
    best = _largest_maxima(blocks.amax(1).view(n_tokens, per_token), k)
    first = torch.arange(0, len(blocks), per_token, device=values.device).unsqueeze(1)
    candidates = blocks.index_select(0, (best + first).flatten()).view(n_tokens, _GROUP, -1)
    groups = _largest_maxima(candidates.amax(1), k)
    each = torch.arange(0, k * _BLOCK, candidates.shape[2], device=values.device).view(1, _GROUP, 1)
    at = (groups.unsqueeze(1) + each).view(n_tokens, -1)
    found, chosen = candidates.view(n_tokens, -1).gather(1, at).topk(k, dim=1, sorted=ordered)
    at = at.gather(1, chosen)
    return found, best.gather(1, at // _BLOCK) * _BLOCK + at % _BLOCK


def _largest_maxima(maxima: Tensor, k: int) -> Int[Tensor, "n_tokens k"]:
    return maxima.topk(k, dim=1, sorted=False).indices


@torch.no_grad()
def keep_top_k_(pre_acts: Float[Tensor, "n_tokens n_latents"], k: int) -> Float[Tensor, "n_tokens n_latents"]:
    """Set to 0, in place, what is negative or not among what `top_k` returns: cheaper where k is a good part of all."""
    if k >= pre_acts.shape[1]:
        return pre_acts.relu_()
    if pre_acts.stride(1) == 1 and (kernels := kernels_for(pre_acts[:1])):
        kernels.keep_top_k(pre_acts, k)
        return pre_acts
    values = torch.topk(pre_acts, k + 1, dim=1, sorted=False).values
    least = values.topk(2, dim=1, largest=False).values  # the (k + 1)-th, then the k-th
    tied = (least[:, 0] == least[:, 1]) & (least[:, 1] > 0)
    if tied.any():
        kept = pre_acts[tied]
        indices = top_k(kept, k)
        pre_acts[tied] = torch.zeros_like(kept).scatter_(1, indices, kept.gather(1, indices))
    return pre_acts.masked_fill_(pre_acts < least[:, 1:].clamp_min(0.0), 0.0)


@torch.no_grad()
def rescored_top_k(
    rounded: Float[Tensor, "n_tokens n_latents"],
    centred: Float[Tensor, "n_tokens d_model"],
    encoder: tuple[Float[Tensor, "n_latents d_model"], Float[Tensor, " n_latents"]],
    k: int,
    *,
    bias: Float[Tensor, " n_latents"] | None = None,
) -> tuple[Float[Tensor, "n_tokens k"], Int[Tensor, "n_tokens k"]]:
    """Return the k largest pre-activations and their places, from pre-activations that were computed with rounding.

    The 2k largest rounded ones are candidates; their values are computed again in full precision with `encoder`, which
    is (W_enc, b_enc). `bias` is added to `rounded`, in place, as its rows come into the cache to be looked at.
    """
    n_candidates = min(2 * k, rounded.shape[1])
    whole = rounded.is_cuda or torch.compiler.is_compiling()
    parts = [rounded] if whole else torch.split(rounded, 2 * _ROWS)
    candidates = [_candidates(part if bias is None else part.add_(bias), n_candidates) for part in parts]
    return best_of(candidates[0] if len(candidates) == 1 else torch.cat(candidates), centred, encoder, k)


def _candidates(rounded: Float[Tensor, "n_tokens n_latents"], many: int) -> Int[Tensor, "n_tokens many"]:
    # A weight that is not finite spoils every token, and a token that is not finite every latent: these tell of all.
    if torch.compiler.is_compiling() or all(part.isfinite().all() for part in (rounded[:1], rounded[:, :1])):
        return largest(rounded, many, ordered=False)[1]
    # The bits of a NaN may be those of a negative number: it must not be passed over.
    return torch.topk(rounded, many, dim=1).indices


@torch.no_grad()
def best_of(
    candidates: Int[Tensor, "n_tokens many"],
    centred: Float[Tensor, "n_tokens d_model"],
    encoder: tuple[Float[Tensor, "n_latents d_model"], Float[Tensor, " n_latents"]],
    k: int,
    *,
    product: Callable[[Tensor, Tensor, Tensor], Tensor] = sampled_product,
) -> tuple[Float[Tensor, "n_tokens k"], Int[Tensor, "n_tokens k"]]:
    """Return the pre-activations and places of the k best of each token's candidates."""
    W_enc, b_enc = encoder
    candidates = candidates.sort(dim=1).values  # of equal ones the lower index is then the first
    values, among = top_values(product(centred, candidates, W_enc) + b_enc[candidates], k)
    return values, candidates.gather(1, among)


@torch.no_grad()
def batch_top_k(pre_acts: Float[Tensor, "n_tokens n_latents"], k: int) -> Bool[Tensor, "n_tokens n_latents"]:
    """Mark the k · n_tokens largest values of the whole batch (BatchTopK: k per token on average)."""
    kept = torch.zeros(pre_acts.numel(), dtype=torch.bool, device=pre_acts.device)
    kept[pre_acts.flatten().topk(k * pre_acts.shape[0]).indices] = True
    return kept.view_as(pre_acts)
