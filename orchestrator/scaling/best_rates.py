"""Of jobs that were trained at several learning rates the best: which count where SAEs are compared."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.scaling.types import JobMeasurement

_ALIKE = (
    "subject", "hook", "layers", "lens", "data", "activation", "n_latents", "k", "seed", "batch_tokens", "max_tokens",
)  # fmt: skip
"""What jobs have in common of which the best rate is looked for."""


class Rates(NamedTuple):
    """Jobs that differ in the learning rate alone, the lowest fvu first."""

    rows: tuple[JobMeasurement, ...]

    @property
    def best(self) -> JobMeasurement:
        """Return the job of the best rate."""
        return self.rows[0]

    @property
    def is_at_end(self) -> bool:
        """Say whether the best rate is the lowest or the highest that was tried: a better one may lie beyond."""
        rates = [row.lr or 0.0 for row in self.rows]
        return rates[0] in (min(rates), max(rates))


def rates_tried(rows: Sequence[JobMeasurement]) -> list[Rates]:
    """Return the groups of jobs that differ in the learning rate alone: of two and more rates, in the order of rows.

    Where two of a group have one rate they differ in something else, such as a penalty, and are no group.
    """
    groups: dict[tuple[object, ...], list[JobMeasurement]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in _ALIKE), []).append(row)
    return [
        Rates(tuple(sorted(same, key=lambda row: (_fvu(row), row.job_id))))
        for same in groups.values()
        if len({row.lr for row in same}) == len(same) > 1 and all(row.lr for row in same)
    ]


def best_rates(rows: Sequence[JobMeasurement]) -> list[JobMeasurement]:
    """Return the jobs without those that another one beats which differs from them in the learning rate alone."""
    beaten = {row.job_id for rates in rates_tried(rows) for row in rates.rows[1:]}
    return [row for row in rows if row.job_id not in beaten]


def _fvu(row: JobMeasurement) -> float:
    return row.fvu if row.fvu is not None and math.isfinite(row.fvu) else math.inf
