"""P(layer | latent), and what follows of it for each latent."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LEAST_VARIANCE = 1e-12
"""Below it there is rounding alone."""


class LayerDistribution(NamedTuple):
    """P(l | j), and of each latent its mean, variance and entropy (nats). NaN of a latent that is never active."""

    layers: Int[Tensor, " n_layers"]
    probabilities: Float[Tensor, "n_layers n_latents"]
    mean: Float[Tensor, " n_latents"]
    variance: Float[Tensor, " n_latents"]
    entropy: Float[Tensor, " n_latents"]

    @classmethod
    def of(cls, totals: Float[Tensor, "n_layers n_latents"], layers: Int[Tensor, " n_layers"]) -> "LayerDistribution":
        """Return the distributions that sums of activations, or counts, are proportional to."""
        probabilities = totals / totals.sum(0)
        mean = layers.double() @ probabilities
        variance = ((layers[:, None] - mean).square() * probabilities).sum(0)
        return cls(layers, probabilities, mean, variance, torch.special.entr(probabilities).sum(0))

    @property
    def distance(self) -> Float[Tensor, " n_latents"]:
        """Return how far the mean is from the nearest layer: of all layers the non-integer part |E − round(E)|."""
        return (self.layers[:, None] - self.mean).abs().amin(0).where(self.mean.isfinite(), torch.nan)

    @property
    def bimodality(self) -> Float[Tensor, " n_latents"]:
        """Return the bimodality coefficient (skew² + 1) / kurtosis of the layer; NaN at one layer alone."""
        return _bimodality(self.layers[:, None] - self.mean, self.probabilities)

    @property
    def order(self) -> Int[Tensor, " n_alive"]:
        """Return the latents that are active at all, sorted by their mean, from the last layer to the first."""
        latents = self.mean.isfinite().nonzero()[:, 0]
        return latents[self.mean[latents].argsort(descending=True, stable=True)]


def bimodality_of_totals(totals: Float[Tensor, "n_layers n_latents"]) -> Float[Tensor, " n_latents"]:
    """Return the coefficient of the sums themselves, one value for each layer, as the released code has it."""
    return _bimodality(totals - totals.mean(0), torch.full_like(totals, 1 / len(totals)))


def _bimodality(
    deviations: Float[Tensor, "n_layers n_latents"], weights: Float[Tensor, "n_layers n_latents"]
) -> Float[Tensor, " n_latents"]:
    second, third, fourth = ((deviations**power * weights).sum(0) for power in (2, 3, 4))
    return ((third.square() / second**3 + 1) * second.square() / fourth).where(second > _LEAST_VARIANCE, torch.nan)
