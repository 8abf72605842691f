"""Normalisation of each activation vector, and the way back."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from orchestrator.config.job import Normalize

_SMALLEST_NORM = 1e-8
"""A vector without any variation stays at the origin instead of becoming NaN."""
STD_EPS = 1e-5
"""Added to the standard deviation of a vector."""


class Normalized(NamedTuple):
    """Vectors and what was taken out of them: original = vectors · scale + mean."""

    vectors: Float[Tensor, "*batch d_model"]
    mean: Float[Tensor, "*batch 1"]
    scale: Float[Tensor, "*batch 1"]


def normalize(x: Float[Tensor, "*batch d_model"], kind: Normalize) -> Normalized:
    """Normalise every vector over d_model.

    unit: (x − mean) / ‖x − mean‖ (Gao et al. 2024, section 2.1). layer_norm: (x − mean) / (std + 1e-5), unbiased std
    (their released weights). none: unchanged.
    """
    mean = x.mean(-1, keepdim=True)
    if kind == "none":
        return Normalized(x, mean.new_zeros(mean.shape), mean.new_ones(mean.shape))
    centred = x - mean
    if kind == "unit":
        scale = centred.norm(dim=-1, keepdim=True).clamp_min(_SMALLEST_NORM)
    else:
        scale = centred.std(-1, keepdim=True) + STD_EPS
    return Normalized(centred / scale, mean, scale)


def denormalize(
    vectors: Float[Tensor, "*batch d_model"], mean: Float[Tensor, "*batch 1"], scale: Float[Tensor, "*batch 1"]
) -> Float[Tensor, "*batch d_model"]:
    """Map vectors, or reconstructions of them, back to the subject's own space."""
    return vectors * scale + mean
