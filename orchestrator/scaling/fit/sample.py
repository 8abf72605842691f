"""What one fit is made from: observations, with their arrays, and how jobs are grouped into them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from orchestrator.formatting import rounded
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.forms import Array, Flags, Numbers
from orchestrator.scaling.types import Excluded, JobMeasurement

Rate = float | None
"""A learning rate to six digits; None where no attempt has told it."""
_RATE_DIGITS = 6


class Cell(NamedTuple):
    """What jobs have in common that differ in seed and learning rate alone."""

    subject: str
    n_latents: int
    k: int


class Observation(NamedTuple):
    """One point a law is fitted to."""

    jobs: tuple[int, ...]
    x: float
    """What the law's axis counts: latents, or FLOPs for L(C)."""
    z: float
    """The law's second variable, k or the size of the subject; 1 where it has none."""
    k: int | None
    subject: str
    value: float
    """fvu, tokens or a learning rate; above 0."""
    cell: tuple[float, float]
    """(n, z): the errors of observations of one cell are correlated."""
    censored: bool = False
    """The truth is above `value`."""
    flagged: str = ""
    """Why a reader should doubt it; empty: nothing."""
    step: float = 0.0
    """Of ln(value): how far apart the values were that could have been observed; 0: any could."""


@dataclass(frozen=True, eq=False)
class Sample:
    """The observations of one fit; equal to itself alone."""

    group: str
    """What was held fixed, such as `k=8`; empty: nothing."""
    subject: str
    """The subject, or the subjects from small to large."""
    observations: tuple[Observation, ...]
    excluded: tuple[Excluded, ...] = ()
    """The jobs left out."""
    shown: tuple[Observation, ...] = ()
    """Flagged observations that are listed with the fit, and not fitted."""
    notes: tuple[str, ...] = ()
    """What a reader must know, in sentences."""
    k: int | None = None
    """The one k that all have; None where the law is over several."""

    @cached_property
    def x(self) -> Array:
        """Return what the axis counts, (n_points,)."""
        return np.array([one.x for one in self.observations])

    @cached_property
    def z(self) -> Array:
        """Return the second variable, (n_points,)."""
        return np.array([one.z for one in self.observations])

    @cached_property
    def logs(self) -> Array:
        """Return ln of what was observed, (n_points,)."""
        return np.log([one.value for one in self.observations])

    @cached_property
    def censored(self) -> Flags:
        """Say of which observations only a bound is known, (n_points,)."""
        return np.array([one.censored for one in self.observations], dtype=bool)

    @cached_property
    def steps(self) -> Array:
        """Return how coarsely ln of each was observed, (n_points,)."""
        return np.array([one.step for one in self.observations])

    @cached_property
    def cells(self) -> Numbers:
        """Return the number of each observation's cell, (n_points,)."""
        return _numbers([one.cell for one in self.observations])

    @cached_property
    def places(self) -> Numbers:
        """Return the number of each observation's (x, z), (n_points,)."""
        return _numbers([(one.x, one.z) for one in self.observations])

    def without_largest(self) -> tuple["Sample", "Sample"]:
        """Part the sample at the largest n that has more than bounds: what is below, and what is known there."""
        top = max((one.cell[0] for one in self.observations if not one.censored), default=0.0)
        below = tuple(one for one in self.observations if one.cell[0] < top)
        there = tuple(one for one in self.observations if one.cell[0] == top and not one.censored)
        return self.of(below), self.of(there)

    def of(self, observations: Sequence[Observation]) -> "Sample":
        """Return the same sample with other observations."""
        return Sample(self.group, self.subject, tuple(observations))


def group(k: int | None, options: FitOptions) -> str:
    """Return the name of what is held fixed, such as `k=8`."""
    return ", ".join(([f"k={k}"] if k is not None else []) + list(options.label()))


def subject_of(rows: Sequence[JobMeasurement]) -> str:
    """Return the subject, or the subjects from small to large."""
    sizes = {row.subject: row.subject_size or 0 for row in rows}
    return ", ".join(sorted(sizes, key=lambda name: (sizes[name], name)))


def per_k(rows: Iterable[JobMeasurement]) -> dict[int, list[JobMeasurement]]:
    """Return jobs by k, the smallest first."""
    found: dict[int, list[JobMeasurement]] = defaultdict(list)
    for row in rows:
        found[row.k].append(row)
    return dict(sorted(found.items()))


def by_cell(rows: Iterable[JobMeasurement]) -> dict[Cell, list[JobMeasurement]]:
    """Return jobs by subject, n and k, in that order."""
    found: dict[Cell, list[JobMeasurement]] = defaultdict(list)
    for row in rows:
        found[Cell(row.subject, row.n_latents or 0, row.k)].append(row)
    return dict(sorted(found.items()))


def by_rate(rows: Iterable[JobMeasurement]) -> dict[Rate, list[JobMeasurement]]:
    """Return jobs by learning rate, the smallest first."""
    found: dict[Rate, list[JobMeasurement]] = defaultdict(list)
    for row in rows:
        found[None if row.lr is None else rounded(row.lr, _RATE_DIGITS)].append(row)
    return dict(sorted(found.items(), key=lambda pair: pair[0] or 0.0))


def mean_loss(rows: Sequence[JobMeasurement], options: FitOptions) -> float:
    """Return the mean loss over seeds; infinite where none is known."""
    losses = [loss for row in rows if (loss := options.loss_of(row)) is not None]
    return sum(losses) / len(losses) if losses else float("inf")


def best(rows: Sequence[JobMeasurement], options: FitOptions) -> tuple[list[JobMeasurement], list[Excluded]]:
    """Return the jobs with the best learning rate of their cell, and the others with the reason."""
    kept, excluded = [], []
    for cell, inside in by_cell(rows).items():
        rates = by_rate(inside)
        rate = min(rates, key=lambda one: mean_loss(rates[one], options))
        loss = mean_loss(rates[rate], options)
        kept += rates[rate]
        why = f"not the best lr at n = {cell.n_latents}, k = {cell.k}: {_rate_text(rate)} has {options.loss} {loss:.4g}"
        excluded += [Excluded(row.job_id, why) for other in rates if other != rate for row in rates[other]]
    return kept, excluded


def converges(rows: Sequence[JobMeasurement]) -> bool:
    """Say whether every seed of one learning rate converged to more than the mean."""
    return all(row.outcome == "converged" and not row.is_dead for row in rows)


def _rate_text(rate: Rate) -> str:
    return "lr unknown" if rate is None else f"lr {rate:g}"


def _numbers(keys: Sequence[tuple[float, float]]) -> Numbers:
    """Return the rank of each key among the distinct ones."""
    ranks = {key: at for at, key in enumerate(sorted(set(keys)))}
    return np.array([ranks[key] for key in keys], dtype=np.intp)
