"""What is said of SAEs of several layers, judged by the scores: seed by seed, with 90% intervals over the seeds.

Source: Lawson et al. 2024: they vary less from layer to layer than SAEs of one layer, each of which is the best on its
own layer; and what they cost the model falls with their size and with k.
"""

import math
from collections.abc import Iterator, Sequence
from math import fsum
from statistics import fmean
from typing import Literal, NamedTuple

from orchestrator.config.evaluation.layer_variants import MATRIX_METRICS, VARIATION, at_layer
from orchestrator.formatting import Interval
from orchestrator.scaling.across_layers import SaeGroup, mean_of

Axis = Literal["n_latents", "k"]
DOWNSTREAM = ("delta_ce", "kl")


class Compared(NamedTuple):
    """One part of a claim: against one other SAE, or at one layer."""

    layers: tuple[int, ...]
    """Of the other SAE, or where it is judged."""
    value: Interval
    """A ratio that should be below 1, or an exponent below 0; of one seed without ends (NaN)."""
    holds: bool | None
    """None: the interval has both."""


class Claim(NamedTuple):
    """What is claimed of one metric and some SAEs, part by part."""

    metric: str
    groups: tuple[SaeGroup, ...]
    """The SAEs that it is of."""
    parts: tuple[Compared, ...]

    @property
    def failing(self) -> list[Compared]:
        """Return the parts that do not hold."""
        return [part for part in self.parts if part.holds is False]

    @property
    def open(self) -> list[Compared]:
        """Return the parts that the seeds do not tell."""
        return [part for part in self.parts if part.holds is None]


def flatter(groups: Sequence[SaeGroup]) -> list[Claim]:
    """Judge whether SAEs of several layers vary less over layers than each SAE of one layer of as many latents and k.

    Only those that were measured at the same layers compare. Parts: the coefficient of variation ÷ that of each.
    """
    found = []
    for multi, singles in _beside_singles(groups):
        for metric in MATRIX_METRICS:
            name = f"{metric} {VARIATION}"
            parts = [(one, _ratio(multi, one, name)) for one in singles if one.layers == multi.layers]
            judged = tuple(_judged(one.trained_on, ratio, 1.0) for one, ratio in parts if ratio is not None)
            if judged:
                found.append(Claim(metric, (multi, *singles), judged))
    return found


def best_at_home(groups: Sequence[SaeGroup]) -> list[Claim]:
    """Judge whether at each layer the SAE of that layer is the best of those of one layer.

    Parts: its score ÷ the lowest of those of other layers there.
    """
    found = []
    for singles in _alike([group for group in groups if len(group.trained_on) == 1]):
        for metric in MATRIX_METRICS if len(singles) > 1 else ():
            parts = []
            for own in singles:
                (layer,) = own.trained_on
                name = f"{metric} {at_layer(layer)}"
                ratios = [_ratio(own, other, name) for other in singles if other.trained_on != own.trained_on]
                known = [ratio for ratio in ratios if ratio is not None]
                if known:
                    parts.append(_judged((layer,), max(known, key=lambda ratio: ratio.value), 1.0))
            if parts:
                found.append(Claim(metric, tuple(singles), tuple(parts)))
    return found


def beside_home(groups: Sequence[SaeGroup]) -> list[Claim]:
    """Compare SAEs of several layers at each layer with the SAE of that layer alone. Parts: theirs ÷ its."""
    found = []
    for multi, singles in _beside_singles(groups):
        for metric in MATRIX_METRICS:
            pairs = [(one, _ratio(multi, one, f"{metric} {at_layer(one.trained_on[0])}")) for one in singles]
            parts = tuple(_judged(one.trained_on, ratio, 1.0) for one, ratio in pairs if ratio is not None)
            if parts:
                found.append(Claim(metric, (multi, *singles), parts))
    return found


def falling(groups: Sequence[SaeGroup], axis: Axis) -> list[Claim]:
    """Judge whether ΔCE and KL of SAEs of several layers fall with n at one k, or with k at one n, at each layer.

    Parts: the exponent of a power law through the SAEs of each seed, by least squares of the logarithms.
    """
    fixed = "k" if axis == "n_latents" else "n_latents"
    series: dict[object, list[SaeGroup]] = {}
    for group in groups:
        if group.is_multi_layer:
            row = group.first
            key = (group.ground, group.trained_on, getattr(row, fixed), row.max_tokens, row.batch_tokens)
            series.setdefault(key, []).append(group)
    found = []
    for members in series.values():
        layers = sorted(set.intersection(*(set(group.layers) for group in members)))
        for metric in DOWNSTREAM if len({getattr(group.first, axis) for group in members}) > 1 else ():
            exponents = [(layer, _exponent(members, axis, f"{metric} {at_layer(layer)}")) for layer in layers]
            parts = tuple(_judged((layer,), one, 0.0) for layer, one in exponents if one is not None)
            if parts:
                found.append(Claim(metric, tuple(members), parts))
    return found


def _beside_singles(groups: Sequence[SaeGroup]) -> Iterator[tuple[SaeGroup, list[SaeGroup]]]:
    """Yield the SAEs of several layers with those of one layer that they are compared with."""
    for alike in _alike(groups):
        singles = [group for group in alike if len(group.trained_on) == 1]
        if singles:
            yield from ((group, singles) for group in alike if group.is_multi_layer)


def _alike(groups: Sequence[SaeGroup]) -> list[list[SaeGroup]]:
    """Return groups by what they compare in: model, site, text, activation, lens, n, k, and length of training."""
    found: dict[object, list[SaeGroup]] = {}
    for group in groups:
        row = group.first
        found.setdefault((group.ground, row.n_latents, row.k, row.max_tokens, row.batch_tokens), []).append(group)
    return list(found.values())


def _ratio(one: SaeGroup, other: SaeGroup, name: str) -> Interval | None:
    """Return the geometric mean over the seeds that both have of a score of one ÷ that of the other."""
    mine, theirs = _by_seed(one, name), _by_seed(other, name)
    logs = [math.log(mine[seed] / theirs[seed]) for seed in mine if seed in theirs]
    return Interval(*map(math.exp, mean_of(logs))) if logs else None


def _exponent(groups: Sequence[SaeGroup], axis: Axis, name: str) -> Interval | None:
    points: dict[int, list[tuple[float, float]]] = {}
    for group in groups:
        for seed, value in _by_seed(group, name).items():
            points.setdefault(seed, []).append((math.log(getattr(group.first, axis)), math.log(value)))
    slopes = [_slope(mine) for mine in points.values() if len({x for x, _ in mine}) > 1]
    return mean_of(slopes) if slopes else None


def _slope(points: Sequence[tuple[float, float]]) -> float:
    mean_x, mean_y = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = fsum((x - mean_x) ** 2 for x, _ in points)
    return fsum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def _by_seed(group: SaeGroup, name: str) -> dict[int, float]:
    """Return a score by seed, as far as it is positive."""
    found = {row.seed: row.scores[name].value for row in group.rows if name in row.scores}
    return {seed: one for seed, one in found.items() if math.isfinite(one) and one > 0}


def _judged(layers: tuple[int, ...], value: Interval, bound: float) -> Compared:
    if math.isnan(value.low):
        return Compared(layers, value, value.value < bound)
    is_told = value.high < bound or value.low > bound
    return Compared(layers, value, value.high < bound if is_told else None)
