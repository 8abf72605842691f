"""Refined activations: the latents that fired keep firing, with the values that reconstruct best.

How far they lie from the encoder's says how much an activation function shrinks what it keeps.
Source: Gao et al. 2024, section 5.1 (decoder and active latents fixed, values ≥ 0).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from worker.sae.inference import InferenceSae, SparseActs, decode_sparse, normalized

_CHUNK_TOKENS = 64
_CHUNK_VALUES = 1 << 26
"""Of the decoder rows and products of them that are held at once; more than that only for one token."""
_MOST_STEPS = 1000
_TOLERANCE = 1e-6
"""Of a token's largest value: a step that moves none by more ends the search."""


class Refined(NamedTuple):
    """Reconstructions from refined activations, and what became of the values of each token."""

    reconstructed: Float[Tensor, "batch context d_model"]
    change: Float[Tensor, "batch context"]
    """Σ (z* / z − 1) over the latents that fired."""
    n_increased: Float[Tensor, "batch context"]
    """How many of them have z* > z."""
    n_active: Float[Tensor, "batch context"]
    """How many fired."""


def refine(sae: InferenceSae, x: Float[Tensor, "batch context d_model"]) -> Refined:
    """Return x̂ of the z* ≥ 0, 0 where a latent did not fire, that minimise ‖x − x̂‖²."""
    parts: list[tuple[Tensor, ...]] = []
    for rows in torch.split(x.reshape(-1, x.shape[-1]), _CHUNK_TOKENS):
        z, indices = sae.encode_sparse(rows)
        target = normalized(sae, rows).vectors - sae.b_dec
        best = _refined(sae.W_dec, indices, target, start=z)
        change = torch.where(z > 0, best / z.clamp_min(1e-30) - 1, 0.0).sum(1)
        found = decode_sparse(sae, SparseActs(best, indices))
        parts.append((found, change, (best > z).sum(1), (z > 0).sum(1)))
    found, *sums = (torch.cat(part).float() for part in zip(*parts, strict=True))
    return Refined(found.view(x.shape), *(one.view(x.shape[:2]) for one in sums))


def _refined(W_dec: Tensor, indices: Tensor, target: Tensor, *, start: Tensor) -> Tensor:
    width = start.shape[1]
    size = max(1, _CHUNK_VALUES // (width * max(width, target.shape[1])))
    pieces = zip(*(torch.split(part, size) for part in (indices, target, start)), strict=True)
    return torch.cat([non_negative_least_squares(W_dec[which], wanted, start=z) for which, wanted, z in pieces])


def non_negative_least_squares(
    directions: Float[Tensor, "n_tokens k d_model"],
    target: Float[Tensor, "n_tokens d_model"],
    *,
    start: Float[Tensor, "n_tokens k"],
) -> Float[Tensor, "n_tokens k"]:
    """Return the z ≥ 0, 0 where `start` is, that minimise ‖target − Σ z · direction‖² of each token.

    By projected gradients with Nesterov's momentum, restarted where it points uphill; steps of 1 / (largest row sum of
    the Gram matrix), which bounds its eigenvalues.
    """
    gram = directions @ directions.mT
    wanted = (directions @ target.unsqueeze(-1)).squeeze(-1)
    step = 1 / gram.abs().sum(-1).amax(-1, keepdim=True).clamp_min(1e-12)
    is_free = start > 0
    z, ahead = start, start
    momentum = torch.ones_like(step)
    for _ in range(_MOST_STEPS):
        gradient = (gram @ ahead.unsqueeze(-1)).squeeze(-1) - wanted
        new = torch.where(is_free, (ahead - step * gradient).clamp_min(0), 0.0)
        moved = new - z
        is_uphill = ((ahead - new) * moved).sum(-1, keepdim=True) > 0
        following = torch.where(is_uphill, 1.0, (1 + (1 + 4 * momentum.square()).sqrt()) / 2)
        ahead = new + torch.where(is_uphill, 0.0, (momentum - 1) / following) * moved
        z, momentum = new, following
        if bool((moved.abs().amax(-1) <= _TOLERANCE * z.abs().amax(-1)).all()):
            break
    return z
