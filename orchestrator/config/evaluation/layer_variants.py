"""How scores of several layers are named: variants of one layer, and of all that were measured."""

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean, pstdev
from typing import NamedTuple

MEAN, VARIATION = "mean over layers", "cv over layers"
"""Variants over all layers that were measured. The second is the coefficient of variation: the standard deviation over
the layers (of the population), through their mean."""
MATRIX_METRICS = ("fvu", "mse", "delta_ce", "kl")
"""Those of the cross matrices of Lawson et al. 2024, in this order. Lower is better."""
_LAYER = "layer="


class OverLayers(NamedTuple):
    """What a variant says of layers."""

    layer: int | None
    """Which one it is of; None: of all of them."""
    over: str
    """MEAN or VARIATION where it is of all, else empty."""
    variant: str
    """What is left of it: `first` of `layer=3, first`."""


def at_layer(layer: int, variant: str = "") -> str:
    """Return the variant of a score at one layer: `layer=3`, `layer=3, first`."""
    return _joined(f"{_LAYER}{layer}", variant)


def of_layers(layers: Sequence[int], variant: str = "") -> str:
    """Return the variant of a score of some layers taken together: `layers=0,2`, `layers=0,2, counts`."""
    return _joined(f"layers={','.join(map(str, layers))}", variant)


def over_all(over: str, variant: str = "") -> str:
    """Return the variant of a score over all layers: `cv over layers`, `raw, cv over layers`."""
    return _joined(variant, over)


def read_variant(variant: str) -> OverLayers | None:
    """Return what a variant says of layers; None where it says nothing."""
    first, _, rest = variant.partition(", ")
    if first.startswith(_LAYER) and first.removeprefix(_LAYER).isdecimal():
        return OverLayers(int(first.removeprefix(_LAYER)), "", rest)
    before, _, last = variant.rpartition(", ")
    return OverLayers(None, last, before) if last in (MEAN, VARIATION) else None


def over_shown(shown: Mapping[int, float], stored_of: Collection[int]) -> dict[str, float] | None:
    """Return MEAN, and where all are above 0 VARIATION, of the scores of some layers that stand side by side.

    None where the stored ones are of just these layers: an evaluation of fewer may have replaced them since.
    """
    if not shown or set(shown) == set(stored_of):
        return None
    values = list(shown.values())
    mean = fmean(values)
    return {MEAN: mean} | ({VARIATION: pstdev(values) / mean} if min(values) > 0 else {})


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))
