"""Measure how well an autoencoder reconstructs the held-out set: fvu and L0."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.estimates.memory import EVALUATED_TOKENS
from worker.sae.model import SparseAutoencoder


class Reconstruction(NamedTuple):
    """How well a model reconstructs the held-out set."""

    fvu: float
    """Σ‖x − x̂‖² / Σ‖x − μ‖², μ the mean of that set."""
    l0: float
    """Mean active latents per token."""


@torch.no_grad()
def measure_reconstruction(
    model: SparseAutoencoder, heldout: Float[Tensor, "n_tokens d_model"], *, chunk_tokens: int = EVALUATED_TOKENS
) -> Reconstruction:
    """Measure fvu and L0 on the held-out set; sums are kept in float64, so chunks do not matter."""
    was_training = model.training
    model.eval()
    mean = heldout.mean(0, dtype=torch.float64).to(heldout.dtype)
    sums = torch.zeros(3, dtype=torch.float64, device=heldout.device)
    for x in torch.split(heldout, chunk_tokens):
        _, top_acts, top_indices = model.encode(x)
        error = (x - model.decode(top_acts, top_indices)).square().sum(dtype=torch.float64)
        spread = (x - mean).square().sum(dtype=torch.float64)
        sums += torch.stack([error, spread, (top_acts > 0).sum(dtype=torch.float64)])
    model.train(was_training)
    error_sum, spread_sum, n_active = sums.tolist()
    fvu = error_sum / spread_sum if spread_sum else math.nan
    return Reconstruction(fvu, l0=n_active / len(heldout))
