"""Whether a loss curve has converged, diverged or hardly fallen. Pure functions of the curve; no numpy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.curves.tail import tail_points

Points = Sequence[tuple[int, float]]

EPSILONS = (0.002, 0.005, 0.01, 0.02)
"""Tolerances ε of tokens_to_convergence that are stored for every job (`limit.tokens_to_convergence`)."""

IN_A_ROW = 3
"""Evaluations below epsilon that make a plateau, and above the untrained loss that make a divergence."""
_RISE = 3.0
"""Times the lowest loss so far, above which a job has diverged."""
_BEFORE_DIVERGENCE = 0.01
"""Share of the budget before which a rise is no divergence."""
_FIRST_POINTS = 4
"""Points, a doubling, that say nothing against the untrained loss: a large rate may overshoot and recover."""
_MARGIN = 1.05
"""Times the untrained loss, above which a job has lost what it began with; evaluations scatter by 0.1%."""
_LEARNT = 0.1
"""Share of the reference loss a job explains at least when it has learned anything: see `learns`."""
_LEAST_NOISE = 1e-7
"""Relative noise at least: the rounding of a float32 loss."""
_Z = 1.6449
"""Standard normal quantile of 95%: the doubt is one-sided."""


class Gain(NamedTuple):
    """What a curve gains as its tokens double, at its end."""

    value: float
    """Relative fall per doubling over the last two doublings: an average, so above the last gain of a convex curve."""
    doubt: float
    """95% bound of the error of `value`: it is below value + doubt."""
    noise: float
    """Relative standard deviation of a point about the curve."""


def has_converged(points: Points, *, epsilon: float, sampling_error: float = 0.0) -> bool:
    """Say whether the gain was below `epsilon` beyond doubt at three evaluations in a row.

    At each: |gain| + doubt < epsilon (`gain`). A curve that rises by more has not converged either.
    `points` are (tokens_seen, fvu) at a constant learning rate, in order. `sampling_error` is the relative standard
    error of the difference between two models on the held-out set, where it is known.
    Source: numerics 6.
    """
    if len(points) < IN_A_ROW:
        return False
    found = [gain(points[: len(points) - back], sampling_error=sampling_error) for back in range(IN_A_ROW)]
    return all(one is not None and abs(one.value) + one.doubt < epsilon for one in found)


def gain(points: Points, *, sampling_error: float = 0.0, noise: float | None = None) -> Gain | None:
    """Return what the curve gains per doubling at its end, by least squares of ln fvu on log2 tokens.

    Over the points of the last two doublings. The scatter is that about a parabola, which follows the bend of any power
    law there; `noise` is used in its place where it is known better. None with too few points (`tail.LEAST_POINTS`),
    over less than a doubling, or where the last loss is not above 0 and finite.
    """
    tail = tail_points(points)
    if not tail or tail[-1] != tuple(points[-1]) or tail[-1][0] < 2 * tail[0][0]:
        return None
    n = len(tail)
    s, v = _centred([math.log2(t) for t, _ in tail]), _centred([math.log(loss) for _, loss in tail])
    s2 = sum(x * x for x in s)
    skew = sum(x**3 for x in s) / s2
    bend = [x * x - s2 / n - skew * x for x in s]
    slope = sum(x * y for x, y in zip(s, v, strict=True)) / s2
    curvature = sum(x * y for x, y in zip(bend, v, strict=True)) / sum(x * x for x in bend)
    left = sum((y - slope * x - curvature * z) ** 2 for x, y, z in zip(s, v, bend, strict=True))
    scatter = max(_LEAST_NOISE, math.sqrt(left / (n - 3)) if noise is None else noise)
    return Gain(-slope, _t95(n - 3) * math.hypot(scatter / math.sqrt(s2), sampling_error), scatter)


def has_diverged(points: Points, *, max_tokens: int, reference: float | None = None) -> bool:
    """Say whether the last loss is not finite, far above the best, or above what the job began with.

    Far: after 1% of the budget, above three times the best so far. Above what it began with: by more than 5% over
    `reference` (`reference_fvu`), at three evaluations in a row after 1% of the budget and the first doubling of
    points, or at the end of the budget.
    """
    if not points:
        return False
    tokens, last = points[-1]
    if not math.isfinite(last):
        return True
    if tokens <= _BEFORE_DIVERGENCE * max_tokens:
        return False
    if last > _RISE * min(loss for _, loss in points):
        return True
    if reference is None:
        return False
    late = [loss for t, loss in points[_FIRST_POINTS:] if t > _BEFORE_DIVERGENCE * max_tokens][-IN_A_ROW:]
    is_over = tokens >= max_tokens and last > _MARGIN * reference
    return is_over or (len(late) == IN_A_ROW and min(late) > _MARGIN * reference)


def learns(points: Points, *, reference: float | None) -> bool:
    """Say whether the last loss is at least 10% below the smaller of `reference` and 1, which the mean alone scores.

    A rate far too low leaves a curve as flat as a converged one, but near where it began. Measured: rates of 1e-6 and
    1e-5 are 1% and 3 to 9% below after 131k tokens; on independent Gaussians, where there is nothing to find, trained
    SAEs end 22 to 27% below (n 512 and 2,048, k 4), on a language model's activations more than 60%.
    """
    least = min(1.0, 1.0 if reference is None else reference)
    return bool(points) and points[-1][1] < (1 - _LEARNT) * least


def _centred(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    return [value - mean for value in values]


def _t95(freedom: int) -> float:
    """Return Student's 95% quantile, to 1% from 4 degrees of freedom on.

    Source: Abramowitz and Stegun 26.7.5.
    """
    z3, z5 = _Z**3, _Z**5
    return _Z + (z3 + _Z) / (4 * freedom) + (5 * z5 + 16 * z3 + 3 * _Z) / (96 * freedom**2)
