"""How many tokens ago each latent fired, and which latents are dead."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@torch.no_grad()
def count_tokens_since_fired(
    top_acts: Float[Tensor, "n_tokens k"],
    top_indices: Int[Tensor, "n_tokens k"] | None,
    tokens_since_fired: Int[Tensor, " n_latents"],
) -> Int[Tensor, " n_latents"]:
    """Return tokens_since_fired after this batch, counted to the token: batches of any size give the same count."""
    fired = top_acts > 0
    n_tokens = len(fired)
    position = torch.arange(1, n_tokens + 1, device=fired.device).unsqueeze(1) * fired
    if top_indices is None:
        last = position.amax(0)
    else:
        last = torch.zeros_like(tokens_since_fired)
        last.scatter_reduce_(0, top_indices.flatten(), position.flatten(), "amax")
    return torch.where(last > 0, n_tokens - last, tokens_since_fired + n_tokens)


def find_dead(
    tokens_since_fired: Int[Tensor, " n_latents"], tokens_seen: int, limit: int
) -> Bool[Tensor, " n_latents"] | None:
    """Return which latents did not fire for more than `limit` tokens; None if none is dead."""
    # Before that many tokens none can have been, and the host need not ask the device.
    if tokens_seen <= limit:
        return None
    found = tokens_since_fired > limit
    return found if found.any() else None
