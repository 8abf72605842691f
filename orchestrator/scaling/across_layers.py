"""SAEs measured at several layers, grouped by seed: what each comes to at every layer, and how evenly.

An SAE of one layer is measured at the others, too: the cross matrices of Lawson et al. 2024.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from scipy.special import stdtrit

from orchestrator.config.evaluation.layer_variants import (
    MATRIX_METRICS,
    MEAN,
    VARIATION,
    at_layer,
    over_all,
    read_variant,
)
from orchestrator.formatting import Interval, count, digits
from orchestrator.scaling.types import JobMeasurement

_TAIL = 0.95
"""Of the 90% interval, the upper end's quantile."""
_NEVER_BELOW_0 = ("fvu", "mse", "l1", "kl", "alive")
"""Scores that cannot be; `alive` is a share besides."""
_ALIKE = (
    "subject",
    "hook",
    "data",
    "activation",
    "n_latents",
    "k",
    "lr",
    "batch_tokens",
    "max_tokens",
    "lens",
    "sweep",
)
"""What SAEs that differ in the seed alone have in common."""
Value = Callable[[JobMeasurement], Interval | None]


@dataclass(frozen=True)
class SaeGroup:
    """SAEs that differ in nothing but the seed, measured at the same several layers."""

    rows: tuple[JobMeasurement, ...]

    @property
    def first(self) -> JobMeasurement:
        """Return one of them, for what they have in common."""
        return self.rows[0]

    @property
    def trained_on(self) -> tuple[int, ...]:
        """Return the layers that they read; none: it is not known which one."""
        return trained_on(self.first)

    @property
    def is_multi_layer(self) -> bool:
        """Say whether they read several layers."""
        return len(self.trained_on) > 1

    @property
    def ground(self) -> tuple[str, ...]:
        """Return what groups that are compared have in common: model, site, text, activation and lens."""
        row = self.first
        return row.subject, row.hook.partition(" of ")[0], row.data, row.activation, row.lens

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Return the layers at which they were measured."""
        return tuple(sorted(measured_at(self.first)))

    def of(self, metric: str, variant: str = "") -> Interval | None:
        """Return a score over the seeds: `over_seeds`, its interval cut to what the score can be."""
        found = self.over_seeds(lambda row: row.scores.get(f"{metric} {variant}".strip()))
        if found is None or metric not in _NEVER_BELOW_0:
            return found
        most = 1.0 if metric == "alive" and variant != over_all(VARIATION) else math.inf
        return Interval(found.value, max(found.low, 0.0), min(found.high, most))

    def at(self, metric: str, layer: int) -> Interval | None:
        """Return a score at one layer, over the seeds."""
        return self.of(metric, at_layer(layer))

    def mean(self, metric: str) -> Interval | None:
        """Return the mean over all layers that were measured, over the seeds."""
        return self.of(metric, over_all(MEAN))

    def variation(self, metric: str) -> Interval | None:
        """Return the coefficient of variation over the layers, over the seeds."""
        return self.of(metric, over_all(VARIATION))

    def over_seeds(self, value: Value) -> Interval | None:
        """Return the mean over seeds with its 90% interval by Student's t; of one SAE, its own score and interval."""
        found = [one for one in map(value, self.rows) if one is not None and math.isfinite(one.value)]
        if len(found) < 2:
            return found[0] if found else None
        return mean_of([one.value for one in found])


def grouped(rows: Sequence[JobMeasurement]) -> list[SaeGroup]:
    """Return the SAEs that were measured at two layers or more, those that differ in the seed alone as one group.

    Means and variations over layers compare at the same layers alone: SAEs measured at others are another group.

    The order: by what they compare in, by n and k; SAEs of several layers first, then those of one by layer.
    """
    alike: dict[tuple[object, ...], list[JobMeasurement]] = {}
    for row in rows:
        if row.n_latents and len(measured_at(row)) > 1:
            key = tuple(getattr(row, name) for name in _ALIKE)
            alike.setdefault((*key, trained_on(row), frozenset(measured_at(row))), []).append(row)
    found: list[SaeGroup] = []
    for same in alike.values():
        differ_in_seed = len({row.seed for row in same}) == len(same)
        found += [SaeGroup(tuple(same))] if differ_in_seed else [SaeGroup((row,)) for row in same]
    return sorted(found, key=_order)


def trained_on(row: JobMeasurement) -> tuple[int, ...]:
    """Return the layers that an SAE reads; none where its config names a module, or leaves the layer open."""
    return row.layers or (() if row.layer is None else (row.layer,))


def measured_at(row: JobMeasurement) -> set[int]:
    """Return the layers at which an SAE was measured in any of the metrics."""
    told = (read_variant(name.partition(" ")[2]) for name in row.scores if name.partition(" ")[0] in MATRIX_METRICS)
    return {said.layer for said in told if said is not None and said.layer is not None}


def told_apart(groups: Sequence[SaeGroup]) -> list[str]:
    """Return a name for each group: the layers that it reads, and what else differs among them."""
    words: list[Callable[[SaeGroup], str]] = [
        lambda group: group.first.subject,
        lambda group: group.ground[1],
        lambda group: group.first.data,
        lambda group: group.first.activation,
        lambda group: f"in the space of {group.first.lens}" if group.first.lens else "without a lens",
        _layers,
        lambda group: f"n = {group.first.n_latents}",
        lambda group: f"k = {group.first.k}",
        lambda group: f"measured at {layers_told(group.layers)}",
        lambda group: f"{count(group.first.max_tokens)} tokens at most",
        lambda group: f"lr {digits(group.first.lr)}",
        lambda group: f"seed {group.first.seed}",
        lambda group: group.first.sweep,
        lambda group: f"job {group.first.job_id}",
    ]
    names: list[tuple[str, ...]] = [() for _ in groups]
    for word in words:
        longer = [(*name, word(group)) for name, group in zip(names, groups, strict=True)]
        if word is _layers or len(set(longer)) > len(set(names)):
            names = longer
    return [", ".join(name) for name in names]


def layers_told(layers: Sequence[int]) -> str:
    """Write layers: `layer 3`, `layers 0–5`, `layers 0, 2, 5`; empty of none."""
    if len(layers) < 2:
        return "".join(f"layer {layer}" for layer in layers)
    first, last = layers[0], layers[-1]
    is_range = len(layers) > 2 and tuple(layers) == tuple(range(first, last + 1))
    return f"layers {f'{first}–{last}' if is_range else ', '.join(map(str, layers))}"


def mean_of(values: Sequence[float]) -> Interval:
    """Return a mean with its 90% interval by Student's t; of one value without ends (NaN)."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    error = math.sqrt(sum((one - mean) ** 2 for one in values) / (n - 1) / n)
    reach = float(stdtrit(n - 1, _TAIL)) * error
    return Interval(mean, mean - reach, mean + reach)


def _order(group: SaeGroup) -> tuple[object, ...]:
    row = group.first
    return (*group.ground, not group.is_multi_layer, row.n_latents or 0, row.k, group.trained_on, row.job_id)


def _layers(group: SaeGroup) -> str:
    return layers_told(group.trained_on) or group.first.hook
