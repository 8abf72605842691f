"""Encode and select without keeping the pre-activations: one tile of them at a time, in memory that is used again."""

import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worker.sae.native.kernels import kernels_for
from worker.sae.scaled_product import FLOAT8, scaled_top_k
from worker.sae.topk import rescored_top_k, top_values

TILE_BYTES = 2**28
"""A tile holds the pre-activations of as many tokens as fit. Fewer are slower: at D = 768, n = 16,384 on two cores a
step took 331 ms with one tile of 2,048 tokens, 349 with two, 355 with four, 392 with eight."""

_WHOLE_BYTES = 2**24
"""What is larger never has a tile of more than half of it, so that a step's peak stays below the matrix of all
pre-activations in float32."""


class Selected(NamedTuple):
    """The latents of a batch."""

    centred: Float[Tensor, "n_tokens d_model"]
    """x − b_pre."""
    top_acts: Float[Tensor, "n_tokens k"]
    top_indices: Int[Tensor, "n_tokens k"]
    pre_acts: Float[Tensor, "n_tokens n_watched"] | None
    """The pre-activations of the latents that were watched, if any were, and nothing was rounded; until the next
    selection of this thread."""
    watched: Int[Tensor, " n_watched"] | None = None

    def narrowed(self, k: int) -> tuple[Float[Tensor, "n_tokens k"], Int[Tensor, "n_tokens k"]]:
        """Return the values and places of the k largest."""
        return self.top_acts[:, :k].contiguous(), self.top_indices[:, :k].contiguous()

    def pre_acts_of(
        self,
        latents: Int[Tensor, " n_some"],
        W_enc: Float[Tensor, "n_latents d_model"],
        b_enc: Float[Tensor, " n_latents"],
    ) -> Float[Tensor, "n_tokens n_some"]:
        """Return the pre-activations of some latents: looked up if all of these were watched, else computed again."""
        if self.pre_acts is not None and self.watched is not None:
            if torch.equal(latents, self.watched):
                return self.pre_acts
            place = torch.full((len(W_enc),), -1).index_copy_(0, self.watched, torch.arange(len(self.watched)))[latents]
            if (place >= 0).all():
                return self.pre_acts.index_select(1, place)
        return torch.addmm(b_enc[latents], self.centred, W_enc[latents].T)


@torch.no_grad()
def select(
    x: Float[Tensor, "n_tokens d_model"],
    b_pre: Float[Tensor, " d_model"],
    encoder: tuple[Float[Tensor, "n_latents d_model"], Float[Tensor, " n_latents"]],
    *,
    k: int,
    dtype: torch.dtype | None = None,
    watched: Int[Tensor, " n_watched"] | None = None,
    tile_bytes: int = TILE_BYTES,
) -> Selected:
    """Return the k latents of each token with the largest SIGNED pre-activation; `encoder` is (W_enc, b_enc).

    `dtype` rounds the product; the candidates it gives are computed again in full precision. Of the `watched` latents
    the pre-activations are kept, if they are not rounded.
    """
    W_enc, b_enc = encoder
    centred = x - b_pre
    if dtype is FLOAT8:
        values, top_indices = scaled_top_k(centred, encoder, k)
        return Selected(centred, values.relu_(), top_indices, None, watched)
    n_bytes = len(x) * len(W_enc) * x.element_size()
    n_rounded = len(x) * len(W_enc) * (dtype or x.dtype).itemsize
    n_tiles = -(-n_rounded // min(tile_bytes, max(_WHOLE_BYTES, n_bytes // 2)))
    rounded = (scratch("weights", W_enc.shape, W_enc.device, dtype).copy_(W_enc), b_enc.to(dtype)) if dtype else None
    found, n_done = [], 0
    kept = None if watched is None or dtype else scratch("watched", (len(x), len(watched)), x.device, x.dtype)
    for tile in centred.chunk(n_tiles):
        out = scratch("tile", (len(tile), len(W_enc)), x.device, dtype or x.dtype)
        if rounded is not None:
            product = torch.mm(tile.to(dtype), rounded[0].T, out=out)  # a tenth faster than addmm, and rounded anyway
            found.append(rescored_top_k(product, tile, encoder, k, bias=rounded[1]))
            continue
        part = None if kept is None else kept[n_done : n_done + len(tile)]
        if kernels := kernels_for(tile, out, W_enc, b_enc, k=k):
            # b_enc is added as the rows are looked at: addmm would write them all once before the product.
            found.append(kernels.top_k(torch.mm(tile, W_enc.T, out=out), k, bias=b_enc))
        else:
            found.append(top_values(torch.addmm(b_enc, tile, W_enc.T, out=out), k))
        if watched is not None and part is not None:
            torch.index_select(out, 1, watched, out=part).add_(b_enc[watched] if kernels else 0.0)
        n_done += len(tile)
    values, top_indices = (_joined(parts) for parts in zip(*found, strict=True))
    return Selected(centred, values.relu_(), top_indices, kept, watched)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([*parts]) if len(parts) > 1 else parts[0]


class _Scratches(threading.local):
    def __init__(self) -> None:
        self.found: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}


_scratches = _Scratches()


def scratch(use: str, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return memory that is the same for all steps and jobs of a thread: fresh pages cost a tenth of a product."""
    scratches, key, n_elements = _scratches.found, (use, device, dtype), math.prod(shape)
    if key not in scratches or scratches[key].numel() < n_elements:
        scratches.pop(key, None)
        scratches[key] = torch.empty(n_elements, device=device, dtype=dtype)
    return scratches[key][:n_elements].view(*shape)
