"""Var(L) of the layer, within a latent and within a latent at one token: weighted by activations, and as released."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from worker.evaluation.bootstrap import ContextBootstrap, ratio
from worker.evaluation.layers.latent_layers import LayerDistribution
from worker.evaluation.layers.sums import LayerSums
from worker.evaluation.metric import Score

Values = dict[tuple[str, str], Float[Tensor, ""]]
"""By metric and variant."""
AS_RELEASED = "as released"


def decomposition(
    found: LayerDistribution, acts: Float[Tensor, "n_layers n_latents"], spread: Float[Tensor, ""]
) -> Values:
    """Return E Var(L | J, T) ≤ E Var(L | J) ≤ Var(L) of P(l, j, t) = a_ltj / Σ a, and the ratios of neighbours.

    `found` is of `acts`; `spread` as `LayerSums` has it.
    """
    total = LayerDistribution.of(acts.sum(1, keepdim=True), found.layers).variance[0]
    mass = acts.sum()
    of_latent, of_token = (acts.sum(0) * found.variance.nan_to_num()).sum() / mass, spread / mass
    return {
        ("var_layer", ""): total,
        ("var_layer_latent", ""): of_latent,
        ("var_layer_token", ""): of_token,
        ("var_ratio_latent", ""): of_latent / total,
        ("var_ratio_token", ""): of_token / of_latent,
    }


def released_scores(sums: LayerSums, generator: torch.Generator) -> Iterator[Score]:
    """Yield the same by the released code: unweighted means over all latents and tokens of a batch, then over batches.

    Source: Lawson et al. 2024, mlsae/analysis/variances.py, with one context a batch.
    """
    batches, token, latent, total = sums.released.unbind(1)
    columns = {
        "var_layer": (total, batches),
        "var_layer_latent": (latent, batches),
        "var_layer_token": (token, batches),
        "var_ratio_latent": _defined(latent, total),
        "var_ratio_token": _defined(token, latent),
    }
    bootstrap = ContextBootstrap(len(batches), generator)
    for name, pair in columns.items():
        yield bootstrap(torch.stack(pair, dim=1)).estimate(ratio).score(name, AS_RELEASED, n=len(batches))


def _defined(above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """Return the quotients of the batches that have one, 0 elsewhere, and which those are."""
    is_defined = below > 0
    return (above / below).where(is_defined, 0.0), is_defined.double()
