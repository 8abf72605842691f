"""Scores by position in the context, and whether the first one behaves as Gao et al. 2024 find it in GPT-2 small.

There position 0 is the easiest to reconstruct, its norm is above ten times that of others in all but the first and the
last layers, and where it is, replacing it costs more than replacing others (Figures 27, 29, 30).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from orchestrator.formatting import Interval
from orchestrator.scaling.types import JobMeasurement

FIRST, REST = "first", "rest"
LARGE_NORM = 10.0
"""Times the norm of other positions."""
_BUCKET = "positions="
_ADDED = ("attn_delta", "mlp_delta", "mlp_post")
"""Sites of what a block adds to the residual stream, or computes on the way."""
_PREFIXES = {"fvu": "fvu raw, ", "delta_ce": "delta_ce ", "kl": "kl ", "residual_norm": "residual_norm "}
"""Of the keys of scores by position, by metric."""
METRICS = tuple(_PREFIXES)


class Profile(NamedTuple):
    """One score of one SAE by position."""

    first: Interval | None
    """At position 0."""
    rest: Interval | None
    """Over all others."""
    buckets: Mapping[tuple[int, int], Interval]
    """By the first and the last position of each, from 1 on."""

    @property
    def ratio(self) -> float:
        """Return the score at position 0 ÷ that of the others; NaN where either is not known."""
        known = self.first is not None and self.rest is not None and self.rest.value
        return self.first.value / self.rest.value if known and self.first and self.rest else math.nan

    @property
    def is_higher(self) -> bool | None:
        """Say whether the score is higher at position 0: by intervals that do not meet; None where they do."""
        if self.first is None or self.rest is None:
            return None
        return True if self.first.low > self.rest.high else False if self.first.high < self.rest.low else None


def profile(row: JobMeasurement, metric: str) -> Profile:
    """Return one of `METRICS` of an SAE by position."""
    prefix = _PREFIXES[metric]
    found = {key.removeprefix(prefix): score for key, score in row.scores.items() if key.startswith(prefix)}
    buckets = {_bounds(name): score for name, score in found.items() if name.startswith(_BUCKET)}
    return Profile(found.get(FIRST), found.get(REST), dict(sorted(buckets.items())))


def has_positions(row: JobMeasurement) -> bool:
    """Say whether an SAE was measured by position."""
    return any(found.first or found.buckets for found in (profile(row, metric) for metric in METRICS))


class FirstPosition(NamedTuple):
    """How position 0 behaves for one SAE; None: its intervals do not say."""

    row: JobMeasurement
    is_easy: bool | None
    """Whether its fvu is lower than that of the others."""
    is_costly: bool | None
    """Whether its ΔCE and KL are higher; False where either is lower."""
    norm_ratio: float
    """Its norm ÷ that of the others."""

    @property
    def has_large_norm(self) -> bool:
        """Say whether its norm is as large as in the paper."""
        return self.norm_ratio > LARGE_NORM

    @property
    def is_as_published(self) -> bool:
        """Say whether it is easy and costly, and its norm large: as at most layers there."""
        return self.is_easy is True and self.is_costly is True and self.has_large_norm


def first_position(row: JobMeasurement) -> FirstPosition | None:
    """Return how position 0 behaves; None where not all four scores were measured there and elsewhere.

    Of the residual stream alone, which the paper speaks of: not of what a block adds to it.
    """
    if row.hook.startswith(_ADDED):
        return None
    found = {metric: profile(row, metric) for metric in METRICS}
    if not all(one.first and one.rest for one in found.values()):
        return None
    lower = found["fvu"].is_higher
    costs = {found["delta_ce"].is_higher, found["kl"].is_higher}
    return FirstPosition(
        row,
        is_easy=None if lower is None else not lower,
        is_costly=False if False in costs else True if costs == {True} else None,
        norm_ratio=found["residual_norm"].ratio,
    )


def _bounds(name: str) -> tuple[int, int]:
    low, _, high = name.removeprefix(_BUCKET).partition("-")
    return int(low), int(high or low)
