"""What one fit is made from: observations with their arrays, and the jobs that were left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from orchestrator.scaling.findings import Excluded
from orchestrator.scaling.laws import Array, Flags, Numbers


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
