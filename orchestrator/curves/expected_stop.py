"""When the plateau rule will stop a job that still trains, from its own curve. Pure, and fast: for `orch status`.

The tail is fitted by least squares over a grid of b, without numpy: `orch status` may have hundreds of curves to fit.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from orchestrator.curves.convergence import IN_A_ROW, gain, learns
from orchestrator.curves.point import evaluation_grid
from orchestrator.curves.tail import EXPONENTS, tail_points

Points = tuple[tuple[int, float], ...]

_SPAN = EXPONENTS[1] / EXPONENTS[0]
_COARSE = tuple(EXPONENTS[0] * _SPAN ** (i / 15) for i in range(16))
"""The b that are tried, over all that are allowed ..."""
_FINER = tuple(_SPAN ** (i / 75) for i in (-4, -3, -2, -1, 1, 2, 3, 4))
"""... and then these multiples of the best of them."""


@lru_cache(maxsize=4096)
def stop_tokens(
    points: Points, *, epsilon: float, first_point_tokens: int, batch_tokens: int, max_tokens: int
) -> int | None:
    """Return where three evaluations in a row will gain less than `epsilon` beyond doubt, at most the budget.

    `points` are (tokens_seen, fvu) at a constant learning rate. The curve goes on as L∞ + a · t^(−b), fitted to its
    last two doublings, and is judged where the trainer will judge it, with the scatter it has now. One that hardly
    falls below what the mean scores goes on to the budget: its untrained loss is not stored before it ends. None where
    the tail has too few points (`tail.LEAST_POINTS`), or a loss is not finite or not above 0.
    Source: numerics 6.
    """
    tail = tail_points(points)
    if not tail or tail[-1] != points[-1] or not all(math.isfinite(loss) for _, loss in points):
        return None
    l_inf, a, b = _fit(tail)
    seen = points[-1][0]
    grid = evaluation_grid(first_point_tokens=first_point_tokens, batch_tokens=batch_tokens, max_tokens=max_tokens)
    ahead = [(t, l_inf + a * (t / seen) ** -b) for t in grid if t > seen]
    whole, now = [*points, *ahead], gain(points)
    quiet = 0
    for end in range(max(1, len(points) - IN_A_ROW + 1), len(whole) + 1):
        # What lies ahead is drawn without noise: it will scatter as the curve does now.
        found = gain(whole[:end], noise=now.noise if now and end > len(points) else None)
        quiet = quiet + 1 if found and abs(found.value) + found.doubt < epsilon else 0
        if quiet >= IN_A_ROW and end >= len(points) and learns(whole[:end], reference=None):
            return min(whole[end - 1][0], max_tokens)
    return max_tokens


def _fit(tail: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Return L∞ ≥ 0, a ≥ 0, b of the least relative squares; a is the height at the last point, t counted in it."""
    last = tail[-1][0]
    scaled = [(t / last, loss) for t, loss in tail]
    coarse = min(_fit_at(scaled, b) for b in _COARSE)
    fine = min(coarse, *(_fit_at(scaled, coarse[3] * factor) for factor in _FINER))
    return fine[1:]


def _fit_at(tail: Sequence[tuple[float, float]], b: float) -> tuple[float, float, float, float]:
    """Return the misfit of the best L∞ and a at a given b, and the three of them."""
    rows = [(1 / loss, u**-b / loss) for u, loss in tail]
    one, power = sum(v for v, _ in rows), sum(w for _, w in rows)
    s11, s12, s22 = sum(v * v for v, _ in rows), sum(v * w for v, w in rows), sum(w * w for _, w in rows)
    determinant = s11 * s22 - s12 * s12
    l_inf = (one * s22 - power * s12) / determinant if determinant > 0 else -1.0
    a = (power * s11 - one * s12) / determinant if determinant > 0 else -1.0
    if l_inf < 0:
        l_inf, a = 0.0, power / s22
    elif a < 0:
        l_inf, a = one / s11, 0.0
    return sum((l_inf * v + a * w - 1) ** 2 for v, w in rows), l_inf, a, b
