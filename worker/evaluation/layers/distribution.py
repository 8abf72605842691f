"""Scores of P(layer | latent): where latents are active on average, how far spread, at how many layers."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worker.evaluation.bootstrap import ContextBootstrap, Estimate
from worker.evaluation.layers.dip import dip_of_draws, dip_over
from worker.evaluation.layers.latent_layers import LayerDistribution, bimodality_of_totals
from worker.evaluation.layers.maps import heat_map
from worker.evaluation.layers.sums import LayerSums, LayerTotals
from worker.evaluation.layers.variances import Values, decomposition
from worker.evaluation.metric import Score
from worker.evaluation.structure.density import rounded

RESAMPLES = 200
RELEASED = "as released"
NEARLY = 0.95
"""Share of its activation at one layer from which on a latent is called one of a single layer."""
DEAD_RATE = 1e-7
"""Activations per token below which the released code calls a latent dead."""
_BINS_PER_LAYER = 16
_ENTROPY_BINS = 16
_DISTANCE_BINS = 10


def distribution_scores(sums: LayerSums, least: Sequence[int], generator: torch.Generator) -> Iterator[Score]:
    """Yield the scores of the distributions, with 90% intervals by a bootstrap over blocks of contexts."""
    total = sums.total
    values = _values(total, least)
    weights = ContextBootstrap(len(sums.n_tokens), generator, resamples=RESAMPLES).draws
    drawn = [_values(sums.weighted(one), least) for one in weights]
    details = _details(total)
    n_alive, n_latents, n_tokens = int((total.counts.sum(0) > 0).sum()), total.counts.shape[1], int(total.n_tokens)
    for key, value in values.items():
        # A draw has fewer contexts of its own, and a rare latent seems to be of fewer layers: what the draws tell is
        # how far a value scatters, about the value itself.
        spread = torch.stack([one[key] for one in drawn]) if drawn else weights.new_zeros(0)
        estimate = Estimate.of(float(value), spread - spread.nanmean() + value)
        n = n_tokens if key[0].startswith("var_") else n_latents if key[0] == "dead_share" else n_alive
        yield estimate.score(*key, n=n, **details.get(key, {}))
    yield from _dips(total)


def _dips(total: LayerTotals) -> Iterator[Score]:
    """Yield the mean dips, of the latents that are active; how far they scatter is over latents."""
    acts = total.acts[:, total.counts.sum(0) > 0]
    for variant, dips in (("", dip_over(total.layers.double(), acts / acts.sum(0))), (RELEASED, dip_of_draws(acts))):
        error = float(dips.std() / len(dips) ** 0.5) if len(dips) > 1 else None
        yield Score("layer_dip", float(dips.mean()), variant, std_error=error, n=len(dips), details={"unit": "latents"})


def latent_table(sums: LayerSums) -> dict[str, Any]:
    """Return P(l | j) for a file, of the latents that are active, sorted by E[L | j] from the last layer on."""
    total = sums.total
    found = LayerDistribution.of(total.acts, total.layers)
    order = found.order
    columns = {"mean": found.mean, "variance": found.variance, "entropy": found.entropy}
    return {
        "layers": total.layers.tolist(),
        "tokens": int(total.n_tokens),
        "latents": order.tolist(),
        **{name: rounded(values[order]) for name, values in columns.items()},
        "probabilities": [rounded(row) for row in found.probabilities[:, order]],
        "counts": total.counts[:, order].long().tolist(),
    }


def _values(total: LayerTotals, least: Sequence[int]) -> Values:
    """Return every value; of latents that are never active only `dead_share` knows."""
    layers, n_tokens, acts, counts, spread = total
    of_acts, of_counts = LayerDistribution.of(acts, layers), LayerDistribution.of(counts, layers)
    is_alive, span = counts.sum(0) > 0, layers.amax() - layers.amin() + 1
    values: Values = {}
    for variant, one in (("", of_acts), ("counts", of_counts)):
        values["layer_mean", variant] = one.mean.nanmean()
        values["layer_var", variant] = one.variance.nanmean()
        values["layer_std", variant] = one.variance.sqrt().nanmean()
        values["layer_entropy", variant] = one.entropy.nanmean()
    values["layer_std", "relative"] = values["layer_std", ""] / span
    values["layer_entropy", "relative"] = values["layer_entropy", ""] / math.log(len(layers))
    values["layer_distance", ""] = of_acts.distance.nanmean()
    values["layer_bimodality", ""] = of_acts.bimodality.nanmean()
    values["layer_bimodality", RELEASED] = bimodality_of_totals(acts).nanmean()
    for threshold in least:
        n_layers = (counts >= threshold).sum(0)[is_alive].double()
        values["layers_active", "" if threshold == 1 else f"≥{threshold}"] = n_layers.mean()
    values["single_layer_share", ""] = ((counts > 0).sum(0)[is_alive] == 1).double().mean()
    values["single_layer_share", f"≥{NEARLY:.0%}"] = (of_acts.probabilities.amax(0)[is_alive] >= NEARLY).double().mean()
    values["dead_share", ""] = (~is_alive).double().mean()
    values["dead_share", "rate"] = (counts.sum(0) < DEAD_RATE * n_tokens).double().mean()
    return values | decomposition(of_acts, acts, spread)


def _details(total: LayerTotals) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the histograms and the heat map that belong to scores."""
    layers, n_tokens = total.layers, int(total.n_tokens)
    found = LayerDistribution.of(total.acts, layers)
    latents = found.order
    ends = float(layers.amin()), float(layers.amax())
    numbers = torch.bincount((total.counts > 0).sum(0)[latents], minlength=len(layers) + 1)
    spread = found.variance[latents].sqrt()
    map_ = heat_map(found.probabilities[:, latents], layers)
    histogram = _histogram(found.mean[latents], ends, _BINS_PER_LAYER * len(layers))
    return {
        ("layer_mean", ""): {"tokens": n_tokens, **histogram, "heat_map": map_},
        ("layer_std", ""): {"tokens": n_tokens, "std_error_over_latents": float(spread.std() / len(spread) ** 0.5)},
        ("layer_entropy", ""): _histogram(found.entropy[latents], (0.0, math.log(len(layers))), _ENTROPY_BINS),
        ("layer_distance", ""): _histogram(found.distance[latents], (0.0, 0.5), _DISTANCE_BINS),
        ("layers_active", ""): {"counts": numbers[1:].tolist()},
    }


def _histogram(values: Float[Tensor, " n"], ends: tuple[float, float], bins: int) -> dict[str, Any]:
    low, high = ends
    # A latent of the last layer alone may have a mean that is rounded to just above it.
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    counts = torch.histogram(values.double().clamp(low, high), edges).hist
    return {"edges": [round(edge, 6) for edge in edges.tolist()], "counts": counts.long().tolist()}
