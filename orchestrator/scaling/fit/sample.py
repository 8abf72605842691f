"""What one fit is made from: observations with their arrays, and the jobs that were left out."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orchestrator.scaling.fit.eligible_jobs import FitOptions, is_dead
from orchestrator.scaling.forms import Array, Flags, Numbers
from orchestrator.scaling.types import Excluded, JobMeasurement


class Cell(NamedTuple):
    """What jobs have in common that differ in seed and learning rate alone."""

    subject: str
    n_latents: int
    k: int


Rate = float | None
"""A learning rate to six digits; None where no attempt has told it."""


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
        found[None if row.lr is None else float(f"{row.lr:.6g}")].append(row)
    return dict(sorted(found.items(), key=lambda pair: pair[0] or 0.0))


def mean_loss(rows: Sequence[JobMeasurement], choices: FitOptions) -> float:
    """Return the mean loss over seeds; infinite where none is known."""
    losses = [loss for row in rows if (loss := choices.loss_of(row)) is not None]
    return sum(losses) / len(losses) if losses else float("inf")


def best(rows: Sequence[JobMeasurement], choices: FitOptions) -> tuple[list[JobMeasurement], list[Excluded]]:
    """Return the jobs with the best learning rate of their cell, and the others with the reason."""
    kept, excluded = [], []
    for cell, inside in by_cell(rows).items():
        rates = by_rate(inside)
        rate = min(rates, key=lambda one: mean_loss(rates[one], choices))
        loss = mean_loss(rates[rate], choices)
        kept += rates[rate]
        why = f"not the best lr at n = {cell.n_latents}, k = {cell.k}: {_told(rate)} has {choices.loss} {loss:.4g}"
        excluded += [Excluded(row.job_id, why) for other in rates if other != rate for row in rates[other]]
    return kept, excluded


def converges(rows: Sequence[JobMeasurement]) -> bool:
    """Say whether every seed of one learning rate converged to more than the mean."""
    return all(row.outcome == "converged" and not is_dead(row) for row in rows)


def _told(rate: Rate) -> str:
    return "lr unknown" if rate is None else f"lr {rate:g}"


def _numbered(keys: Sequence[tuple[float, float]]) -> Numbers:
    numbers = {key: at for at, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys], dtype=np.intp)


class Observation(NamedTuple):
    """One point a law is fitted to."""

    jobs: tuple[int, ...]
    x: float
    z: float
    """k, or the size of the subject: what the law's second variable is; 1 where it has none."""
    k: int | None
    subject: str
    value: float
    """fvu, tokens or a learning rate; above 0."""
    cell: tuple[float, float]
    """Observations of one cell err together: (n, z)."""
    censored: bool = False
    flagged: str = ""
    step: float = 0.0
    """Of ln(value): how far apart the values were that could have been observed; 0: any could."""


@dataclass(frozen=True)
class Sample:
    """The observations of one fit."""

    group: str
    subject: str
    observations: tuple[Observation, ...]
    excluded: tuple[Excluded, ...] = ()
    shown: tuple[Observation, ...] = ()
    """Flagged ones that are listed with the fit, and not fitted."""
    notes: tuple[str, ...] = ()
    k: int | None = None
    """The one k that all have; None where the law is over several."""

    @property
    def x(self) -> Array:
        """Return what the axis counts, (n_points,)."""
        return np.array([one.x for one in self.observations])

    @property
    def z(self) -> Array:
        """Return the second variable, (n_points,)."""
        return np.array([one.z for one in self.observations])

    @property
    def logs(self) -> Array:
        """Return ln of what was observed, (n_points,)."""
        return np.log([one.value for one in self.observations])

    @property
    def censored(self) -> Flags:
        """Say of which observations only a bound is known, (n_points,)."""
        return np.array([one.censored for one in self.observations], dtype=bool)

    @property
    def steps(self) -> Array:
        """Return how coarsely ln of each was observed, (n_points,)."""
        return np.array([one.step for one in self.observations])

    @property
    def cells(self) -> Numbers:
        """Return the number of each observation's cell, (n_points,)."""
        return _numbered([one.cell for one in self.observations])

    @property
    def places(self) -> Numbers:
        """Return the number of each observation's (x, z), (n_points,)."""
        return _numbered([(one.x, one.z) for one in self.observations])

    def without_largest(self) -> tuple["Sample", "Sample"]:
        """Return the sample without the largest n that is known and not a mere bound, and what is there."""
        top = max((one.cell[0] for one in self.observations if not one.censored), default=0.0)
        below = tuple(one for one in self.observations if one.cell[0] < top)
        there = tuple(one for one in self.observations if one.cell[0] == top and not one.censored)
        return self.of(below), self.of(there)

    def of(self, observations: Sequence[Observation]) -> "Sample":
        """Return the same sample with other observations."""
        return Sample(self.group, self.subject, tuple(observations))

    def distinct(self) -> int:
        """Return how many different x are known, bounds left out."""
        return len({one.x for one in self.observations if not one.censored})
