"""SAEs measured at several layers, made by hand: their scores by layer, with mean and variation."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

from orchestrator.formatting import Interval
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured


def at_layers(
    layers: Sequence[int], scores: Mapping[str, Sequence[float]], *, n: int = 256, k: int = 8, **values: Any
) -> JobMeasurement:
    """Return a job whose SAE reads `layers`, with the scores of layers 0, 1, ... by metric."""
    found: dict[str, Interval] = {}
    for metric, by_layer in scores.items():
        found |= {f"{metric} layer={layer}": _sure(value) for layer, value in enumerate(by_layer)}
        found[f"{metric} mean over layers"] = _sure(fmean(by_layer))
        found[f"{metric} cv over layers"] = _sure(pstdev(by_layer) / fmean(by_layer))
        found[metric] = _sure(fmean(by_layer[layer] for layer in layers))
    one = layers[0] if len(layers) == 1 else None
    hook = f"resid_post of {'h.' if one is not None else 'layers '}{', '.join(map(str, layers))}"
    return measured(
        n, k, layer=one, layers=() if one is not None else tuple(layers), hook=hook, scores=found, d_model=128, **values
    )


def _sure(value: float) -> Interval:
    return Interval(value, 0.9 * value, 1.1 * value) if math.isfinite(value) else Interval(value, math.nan, math.nan)
