"""Encode and select without keeping the pre-activations: one tile of them at a time, in memory that is used again."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worker.sae.topk import rescored_top_k, top_k

TILE_BYTES = 2**28
"""A tile holds the pre-activations of as many tokens as fit: smaller ones were slower (1,024 tokens of 2,048 by 5%, 512
by 15%, at D = 768 and n = 16,384 on two cores)."""


class Selected(NamedTuple):
    """The latents of a batch."""

    centred: Float[Tensor, "n_tokens d_model"]
    """x − b_pre."""
    top_acts: Float[Tensor, "n_tokens k"]
    top_indices: Int[Tensor, "n_tokens k"]
    pre_acts: Float[Tensor, "n_tokens n_latents"] | None
    """The pre-activations, until the next selection, if the batch was one tile and nothing was rounded."""

    def narrowed(self, k: int) -> tuple[Float[Tensor, "n_tokens k"], Int[Tensor, "n_tokens k"]]:
        """Return the values and places of the k largest."""
        return self.top_acts[:, :k].contiguous(), self.top_indices[:, :k].contiguous()

    def pre_acts_of(
        self,
        latents: Int[Tensor, " n_some"],
        W_enc: Float[Tensor, "n_latents d_model"],
        b_enc: Float[Tensor, " n_latents"],
    ) -> Float[Tensor, "n_tokens n_some"]:
        """Return the pre-activations of some latents, a copy: looked up if they are there, else computed again."""
        if self.pre_acts is not None:
            return self.pre_acts.index_select(1, latents)
        return torch.addmm(b_enc[latents], self.centred, W_enc[latents].T)


@torch.no_grad()
def select(
    x: Float[Tensor, "n_tokens d_model"],
    b_pre: Float[Tensor, " d_model"],
    encoder: tuple[Float[Tensor, "n_latents d_model"], Float[Tensor, " n_latents"]],
    *,
    k: int,
    dtype: torch.dtype | None = None,
    tile_bytes: int = TILE_BYTES,
) -> Selected:
    """Return the k latents of each token with the largest SIGNED pre-activation; `encoder` is (W_enc, b_enc).

    `dtype` rounds the product; the candidates it gives are computed again in full precision.
    """
    W_enc, b_enc = encoder
    centred = x - b_pre
    n_tiles = -(-len(x) * len(W_enc) * x.element_size() // tile_bytes)
    rounded = (W_enc.to(dtype), b_enc.to(dtype)) if dtype else None
    found, pre_acts = [], None
    for tile in centred.chunk(n_tiles):
        if rounded is not None:
            found.append(rescored_top_k(_product(tile.to(dtype), *rounded), tile, encoder, k))
            continue
        pre_acts = _product(tile, W_enc, b_enc)
        indices = top_k(pre_acts, k)
        found.append((pre_acts.gather(1, indices), indices))
    values, top_indices = (torch.cat(parts) if len(found) > 1 else parts[0] for parts in zip(*found, strict=True))
    return Selected(centred, values.relu_(), top_indices, pre_acts if len(found) == 1 else None)


_scratches: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _product(x: Tensor, W_enc: Tensor, b_enc: Tensor) -> Float[Tensor, "n_tokens n_latents"]:
    return torch.addmm(b_enc, x, W_enc.T, out=_scratch(len(x), len(W_enc), like=x))


def _scratch(n_tokens: int, n_latents: int, *, like: Tensor) -> Float[Tensor, "n_tokens n_latents"]:
    """Return memory for a tile: the same for every step and every job, since fresh pages cost a tenth of a product."""
    key = (like.device, like.dtype)
    if key not in _scratches or _scratches[key].numel() < n_tokens * n_latents:
        _scratches.pop(key, None)
        _scratches[key] = torch.empty(n_tokens * n_latents, device=like.device, dtype=like.dtype)
    return _scratches[key][: n_tokens * n_latents].view(n_tokens, n_latents)
