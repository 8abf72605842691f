"""How many tokens ago each latent fired, and which latents are dead."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worker.sae.native.kernels import kernels_for


@torch.no_grad()
def count_tokens_since_fired(
    top_acts: Float[Tensor, "n_tokens k"],
    top_indices: Int[Tensor, "n_tokens k"] | None,
    tokens_since_fired: Int[Tensor, " n_latents"],
) -> Int[Tensor, " n_latents"]:
    """Return tokens_since_fired after this batch, counted to the token: batches of any size give the same count."""
    n_tokens = len(top_acts)
    if top_indices is not None and (kernels := kernels_for(top_acts)):
        since = tokens_since_fired + n_tokens
        kernels.mark_fired(top_acts, top_indices, since)
        return since
    fired = top_acts > 0
    position = torch.arange(1, n_tokens + 1, device=fired.device).unsqueeze(1) * fired
    if top_indices is None:
        last = position.amax(0)
    else:
        last = torch.zeros_like(tokens_since_fired)
        last.scatter_reduce_(0, top_indices.flatten(), position.flatten(), "amax")
    return torch.where(last > 0, n_tokens - last, tokens_since_fired + n_tokens)


@torch.no_grad()
def count_by_layer(
    top_acts: Float[Tensor, "n_vectors k"],
    top_indices: Int[Tensor, "n_vectors k"] | None,
    tokens_since_fired: Int[Tensor, "n_latents n_layers"],
    *,
    count: Callable[..., Tensor] = count_tokens_since_fired,
) -> Int[Tensor, "n_latents n_layers"]:
    """Do the same at every layer: a batch has the vectors of the first one, then those of the same tokens at the next.

    Of one token of text all layers stand in one row for `count`, latent i of layer l as i · n_layers + l.
    """
    n_layers = tokens_since_fired.shape[1]
    if n_layers > 1:
        acts = top_acts.view(n_layers, len(top_acts) // n_layers, top_acts.shape[1])
        if top_indices is None:
            top_acts = acts.permute(1, 2, 0).flatten(1)
        else:
            layer = torch.arange(n_layers, device=top_acts.device).view(-1, 1, 1)
            places = top_indices.view(acts.shape) * n_layers + layer
            top_acts, top_indices = acts.transpose(0, 1).flatten(1), places.transpose(0, 1).flatten(1)
    return count(top_acts, top_indices, tokens_since_fired.flatten()).view_as(tokens_since_fired)


def find_dead(
    tokens_since_fired: Int[Tensor, "n_latents n_layers"], tokens_seen: int, limit: int
) -> Bool[Tensor, " n_latents"] | None:
    """Return which latents fired at no layer for more than `limit` tokens; None if none is dead."""
    # Before that many tokens none can have been, and the host need not ask the device.
    if tokens_seen <= limit:
        return None
    found = silent_tokens(tokens_since_fired) > limit
    return found if found.any() else None


def silent_tokens(tokens_since_fired: Int[Tensor, "n_latents n_layers"]) -> Int[Tensor, " n_latents"]:
    """Return for how many tokens of text each latent has fired at no layer."""
    return tokens_since_fired.amin(1)
