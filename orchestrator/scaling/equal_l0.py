"""Activations compared at equal L0: what each would reach at the sparsity of TopK, between its own jobs.

A penalty, not `k`, sets the L0 of ReLU and JumpReLU, so their jobs lie beside those of TopK. Between two jobs of one
seed the logarithm of a metric is interpolated linearly in ln L0; beyond them nothing is said. Seeds are compared one by
one, for the text and its order are then the same, and their spread gives the interval. At several learning rates the
frontier counts: the jobs that no other one of their seed beats, whose fvu is lower at no higher L0.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from orchestrator.formatting import Interval
from orchestrator.scaling.across_layers import mean_of
from orchestrator.scaling.plots.naming import differing, place
from orchestrator.scaling.types import JobMeasurement

BASELINE = "topk"
Value = Callable[[JobMeasurement], float | None]


class Comparison(NamedTuple):
    """What one activation comes to at an L0 of TopK, against TopK."""

    place: str
    """What tells subject, hook point and text apart, as far as they differ."""
    activation: str
    n_latents: int
    l0: float
    """The mean of TopK's over the seeds."""
    baseline: float
    """Geometric mean over the seeds of what TopK comes to."""
    ratio: Interval
    """What it comes to ÷ what TopK does, with the 90% interval over the seeds; of one seed without ends (NaN)."""
    seeds: tuple[int, ...]
    jobs: tuple[int, ...]
    """Of both: TopK's, and those between which the other was interpolated."""


def compare(rows: Sequence[JobMeasurement], value: Value) -> list[Comparison]:
    """Compare every other activation with TopK at the L0 of each of TopK's jobs, at the same place and n.

    `value` gives the metric of a job, which must be positive; jobs without it are left out. So are those that another
    one of the same seed beats, which has a lower fvu at no higher L0: at several learning rates the best counts.
    """
    known = [row for row in rows if row.n_latents and _is_positive(row.l0) and _is_positive(value(row))]
    grounds = [name for name in differing(known) if name != "activation"]
    found: list[Comparison] = []
    for where, n_latents in sorted({(place(row, grounds), row.n_latents or 0) for row in known}):
        here = [row for row in known if (place(row, grounds), row.n_latents) == (where, n_latents)]
        for k in sorted({row.k for row in here if row.activation == BASELINE}):
            base = _best([row for row in here if row.activation == BASELINE and row.k == k])
            for other in sorted({row.activation for row in here} - {BASELINE}):
                pairs = _pairs(base, [row for row in here if row.activation == other], value)
                if pairs:
                    found.append(_comparison(where, other, n_latents, pairs, value))
    return found


def _best(rows: Sequence[JobMeasurement]) -> dict[int, JobMeasurement]:
    """Return the job of each seed whose fvu is the lowest."""
    best: dict[int, JobMeasurement] = {}
    for row in sorted(rows, key=lambda one: (_fvu(one), one.job_id)):
        best.setdefault(row.seed, row)
    return best


def _frontier(rows: Sequence[JobMeasurement]) -> list[JobMeasurement]:
    """Return the jobs of one seed, by L0, that none beats whose fvu is lower at no higher L0."""
    kept: list[JobMeasurement] = []
    for row in sorted(rows, key=lambda one: (one.l0 or 0.0, _fvu(one), one.job_id)):
        if not kept or _fvu(row) <= _fvu(kept[-1]):
            kept.append(row)
    return kept


def _fvu(row: JobMeasurement) -> float:
    return math.inf if row.fvu is None else row.fvu


class _Pair(NamedTuple):
    """One seed: TopK's job, and what the other activation comes to at its L0."""

    base: JobMeasurement
    other: float
    between: tuple[JobMeasurement, JobMeasurement]


def _pairs(base: dict[int, JobMeasurement], others: Sequence[JobMeasurement], value: Value) -> list[_Pair]:
    pairs = []
    for seed, row in sorted(base.items()):
        between = _around(_frontier([one for one in others if one.seed == seed]), row.l0 or 0.0)
        if between is not None:
            pairs.append(_Pair(row, _interpolated(between, row.l0 or 0.0, value), between))
    return pairs


def _around(rows: Sequence[JobMeasurement], l0: float) -> tuple[JobMeasurement, JobMeasurement] | None:
    """Return the neighbours of an L0 among jobs sorted by theirs; a job of just that L0 is both."""
    same = next((row for row in rows if row.l0 == l0), None)
    if same is not None:
        return same, same
    return next((pair for pair in pairwise(rows) if (pair[0].l0 or 0.0) < l0 < (pair[1].l0 or 0.0)), None)


def _interpolated(between: tuple[JobMeasurement, JobMeasurement], l0: float, value: Value) -> float:
    low, high = between
    below, above = math.log(value(low) or 0.0), math.log(value(high) or 0.0)
    if low is high:
        return math.exp(below)
    share = math.log(l0 / (low.l0 or 0.0)) / math.log((high.l0 or 0.0) / (low.l0 or 0.0))
    return math.exp(below + share * (above - below))


def _comparison(where: str, activation: str, n_latents: int, pairs: Sequence[_Pair], value: Value) -> Comparison:
    logs = [math.log(pair.other / (value(pair.base) or 0.0)) for pair in pairs]
    jobs = dict.fromkeys(row.job_id for pair in pairs for row in (pair.base, *pair.between))
    return Comparison(
        place=where,
        activation=activation,
        n_latents=n_latents,
        l0=sum(pair.base.l0 or 0.0 for pair in pairs) / len(pairs),
        baseline=math.exp(sum(math.log(value(pair.base) or 0.0) for pair in pairs) / len(pairs)),
        ratio=_ratio(logs),
        seeds=tuple(pair.base.seed for pair in pairs),
        jobs=tuple(jobs),
    )


def _ratio(logs: Sequence[float]) -> Interval:
    """Return exp of a mean, with its 90% interval by Student's t."""
    return Interval(*map(math.exp, mean_of(logs)))


def _is_positive(number: float | None) -> bool:
    return number is not None and math.isfinite(number) and number > 0
