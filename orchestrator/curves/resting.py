"""Which points of a curve are of one loss: those since the weight of a sparsity penalty came to rest."""

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

_REST = 0.1
"""Largest |ln| of the ratio of two weights that count as one. By the L0 that ReLU has at each, λ^−0.9 around 32 on the
shipped subject, it is worth a tenth of L0 at most."""


class WeighedPoint(Protocol):
    """A point as the trainer has it, or as it is stored."""

    @property
    def tokens_seen(self) -> int:
        """Training tokens so far."""

    @property
    def fvu(self) -> float | None:
        """None or NaN where it is not finite."""

    @property
    def sparsity_coef(self) -> float | None:
        """Weight of the penalty that `sae.target_l0` has led to; None or NaN where it is fixed."""


def resting_points(curve: Sequence[WeighedPoint]) -> list[tuple[int, float]]:
    """Return (tokens_seen, fvu) of the last points in a row whose weight is that of the last; of all if it is fixed.

    While `sae.target_l0` leads the weight, fvu follows it up and down: that is no divergence, and no convergence.
    """
    last = _weight(curve[-1]) if curve else None
    kept = curve if last is None else [*takewhile(lambda point: _is_at(point, last), reversed(curve))][::-1]
    return [(point.tokens_seen, math.nan if point.fvu is None else point.fvu) for point in kept]


def _is_at(point: WeighedPoint, last: float) -> bool:
    weight = _weight(point)
    return weight is not None and abs(math.log(weight / last)) <= _REST


def _weight(point: WeighedPoint) -> float | None:
    weight = point.sparsity_coef
    return weight if weight and math.isfinite(weight) else None
