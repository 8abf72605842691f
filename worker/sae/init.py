"""The untrained model: random unit decoder, tied encoder, geometric median, matched scale."""

import torch
from jaxtyping import Float
from torch import Tensor

from worker.sae.model import SparseAutoencoder

_ITERATIONS = 100
_TOLERANCE = 1e-5
_SCALE_ROWS = 4096
"""Rows of the sample that the encoder's scale is measured on."""


@torch.no_grad()
def initialise(model: SparseAutoencoder, sample: Float[Tensor, "n_tokens d_model"], *, seed: int) -> None:
    """Fill the parameters from a sample of NORMALISED activations.

    Of several layers the sample's rows are those of the first token at every layer, then those of the next: median and
    scale are of all of them.

    W_dec: random directions of unit norm; W_enc = W_dec; b_enc = 0; b_pre: the sample's geometric median; then W_enc is
    scaled so that mean ‖x̂ − b_pre‖ = mean ‖x − b_pre‖ on the sample.
    Source: Gao et al. 2024, appendix A.1. The same on every device: the draw is made on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(model.n_latents, model.d_model, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    model.W_dec.copy_(directions)
    model.W_enc.copy_(directions)
    model.b_enc.zero_()
    model.b_pre.copy_(geometric_median(sample))
    rows = sample[:_SCALE_ROWS]
    if model.own:
        model.function.fit(model.encode(rows).pre_acts, model.own, k=model.k)
    wanted = (rows - model.b_pre).norm(dim=1).mean()
    found = (model(rows) - model.b_pre).norm(dim=1).mean()
    scale = (wanted / found).where(found > 0, 1.0)
    model.W_enc.mul_(scale)
    if model.own:
        model.function.rescale(scale, model.own)
        model.function.calibrate(model.encode(rows).pre_acts, model.own, k=model.k)


@torch.no_grad()
def geometric_median(points: Float[Tensor, "n_points d_model"]) -> Float[Tensor, " d_model"]:
    """Return the point with the least sum of distances to all, by Weiszfeld's iteration from the mean.

    At most 100 iterations; it stops when a step is shorter than 1e-5 of the mean distance.
    """
    median = points.mean(0)
    for _ in range(_ITERATIONS):
        distances = (points - median).norm(dim=1)
        reach = distances.mean()
        if reach == 0:
            break
        # A point that the median sits on would weigh infinitely.
        weights = 1 / distances.clamp_min(_TOLERANCE * reach)
        moved = (weights @ points) / weights.sum()
        step = (moved - median).norm()
        median = moved
        if not step > _TOLERANCE * reach:
            break
    return median
