"""Exact selection: the k largest pre-activations of a token, or of a whole batch."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@torch.no_grad()
def top_k(pre_acts: Float[Tensor, "n_tokens n_latents"], k: int) -> Int[Tensor, "n_tokens k"]:
    """Return where the k largest SIGNED values of each row are: largest first, of equal ones the lower index first."""
    values, indices = torch.topk(pre_acts, k, dim=1)
    # torch.topk leaves the order of equal values open. Few batches hold any, so looking is all that most pay.
    at_least_last = pre_acts >= values[:, -1:]
    in_order = not (values[:, 1:] == values[:, :-1]).any()
    if in_order and at_least_last.count_nonzero() == indices.numel():
        return indices
    tied = (values[:, 1:] == values[:, :-1]).any(1) | (at_least_last.sum(1) > k)
    indices[tied] = pre_acts[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return indices


@torch.no_grad()
def batch_top_k(pre_acts: Float[Tensor, "n_tokens n_latents"], k: int) -> Bool[Tensor, "n_tokens n_latents"]:
    """Mark the k · n_tokens largest values of the whole batch (BatchTopK: k per token on average)."""
    kept = torch.zeros(pre_acts.numel(), dtype=torch.bool, device=pre_acts.device)
    kept[pre_acts.flatten().topk(k * pre_acts.shape[0]).indices] = True
    return kept.view_as(pre_acts)
