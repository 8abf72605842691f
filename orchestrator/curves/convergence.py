"""Whether a loss curve has converged or diverged, its limit, and the tokens it took. Pure functions of the curve."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.curves.tail import EXPONENTS, tail_points

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
else:
    # numpy and scipy are loaded where a curve is fitted: `orch status` needs neither.
    Array = Any

EPSILONS = (0.002, 0.005, 0.01, 0.02)
"""Tolerances ε of tokens_to_convergence that are stored for every job."""

IN_A_ROW = 3
"""Evaluations below epsilon that make a plateau."""
_RISE = 3.0
"""Times the lowest loss so far, above which a job has diverged."""
_BEFORE_DIVERGENCE = 0.01
"""Share of the budget before which a rise is no divergence."""
_LEAST_NOISE = 1e-7
"""Relative noise the fit assumes at least: the rounding of a float32 loss."""
_FLAT = 0.01
"""Relative fall over the tail, and relative standard error of L∞, below and above which the tail is a constant."""
_REWEIGHTINGS = 5


class Tail(NamedTuple):
    """The end of a curve as L∞ + a · tokens^(−b)."""

    l_inf: float
    """The loss it tends to."""
    l_inf_se: float
    """Standard error of l_inf, from the fit's covariance; inf where the curve does not settle it."""
    a: float
    b: float


class Count(NamedTuple):
    """Tokens to convergence within ε; one of the two is None, both with no curve."""

    epsilon: float
    tokens: float | None
    """First tokens at which the curve is ≤ (1 + ε) · L∞."""
    lower_bound: float | None
    """Censored: it takes more than this."""


def has_converged(points: Sequence[tuple[int, float]], *, epsilon: float) -> bool:
    """Say whether three evaluations in a row fell by less than `epsilon` (relative) since half their tokens.

    `points` are (tokens_seen, fvu), in order; the loss at half the tokens is interpolated in log tokens.
    """
    if len(points) < IN_A_ROW:
        return False
    return all(abs(fall(points, index)) < epsilon for index in range(len(points) - IN_A_ROW, len(points)))


def fall(points: Sequence[tuple[int, float]], index: int) -> float:
    """Return the relative fall of a point's loss against the loss at half its tokens; inf if that is not known."""
    tokens, loss = points[index]
    half = tokens / 2
    for (left, high), (right, low) in pairwise(points[: index + 1]):
        if left <= half <= right:
            share = math.log(half / left) / math.log(right / left) if right > left else 0.0
            earlier = high + share * (low - high)
            relative = (earlier - loss) / earlier if earlier > 0 else math.inf
            return relative if math.isfinite(relative) else math.inf
    return math.inf


def has_diverged(points: Sequence[tuple[int, float]], *, max_tokens: int) -> bool:
    """Say whether the last loss is not finite, or, after 1% of the budget, above three times the best so far."""
    if not points:
        return False
    tokens, last = points[-1]
    if not math.isfinite(last):
        return True
    best = min(loss for _, loss in points)
    return tokens > _BEFORE_DIVERGENCE * max_tokens and last > _RISE * best


def tail_fit(points: Sequence[tuple[int, float]]) -> Tail | None:
    """Fit L∞ + a · t^(−b), a ≥ 0, L∞ ≥ 0, to the last two doublings of the curve.

    Relative residuals under a soft-L1 loss whose width is the noise of a first fit. A tail that a constant describes as
    well (AICc on robust residuals), or that falls by less than 1% and leaves L∞ open, gets that constant, a = b = 0: a
    trend below the noise would put L∞ anywhere.
    None with too few usable points (`tail.LEAST_POINTS`), or where no fit is finite.
    """
    usable = tail_points(points)
    if not usable:
        return None
    import numpy as np
    from scipy.optimize import least_squares

    last = float(usable[-1][0])
    u = np.array([t / last for t, _ in usable])
    losses = np.array([loss for _, loss in usable])

    def residuals(p: Array) -> Array:
        relative: Array = (p[0] + p[1] * u ** (-p[2])) / losses - 1
        return relative

    start = _best_start(u, losses)
    noise = 1.345 * _spread(residuals(start))
    top = 2 * float(losses.max())
    found = least_squares(
        residuals, start, bounds=([0, 0, EXPONENTS[0]], [top, np.inf, EXPONENTS[1]]),
        x_scale=[losses.min(), losses.max(), 1.0], loss="soft_l1", f_scale=noise, xtol=1e-14, ftol=1e-14, gtol=1e-14,
    )  # fmt: skip
    l_inf, a, b = (float(value) for value in found.x)
    fit = Tail(l_inf, _standard_error(found.x, u, losses), a * last**b, b)
    drop = a * (float(u[0]) ** -b - 1) / losses.min()
    level = float(np.median(losses))
    if _is_flat(level / losses - 1, residuals(found.x)) or (drop < _FLAT and fit.l_inf_se > _FLAT * level):
        error = 1.2533 * level * _spread(level / losses - 1) / math.sqrt(len(losses))
        # What the power law would have said is part of the doubt, as far as the tail itself reaches.
        return Tail(level, math.hypot(error, min(level - l_inf, level * _FLAT)), 0.0, 0.0)
    return fit if all(map(math.isfinite, (fit.l_inf, fit.a, fit.b))) else None


def tokens_to_convergence(points: Sequence[tuple[int, float]], *, epsilon: float, tail: Tail | None) -> Count:
    """Return the first tokens at which the curve is ≤ (1 + ε) · L∞, interpolated in log tokens; else a lower bound.

    A curve whose first point is already there gives that point's tokens.
    """
    known = [(t, loss) for t, loss in points if t > 0 and math.isfinite(loss)]
    if not known:
        return Count(epsilon, None, None)
    target = (1 + epsilon) * tail.l_inf if tail is not None else -math.inf
    before: tuple[int, float] | None = None
    for tokens, loss in known:
        if loss <= target:
            return Count(epsilon, float(tokens) if before is None else _crossing(before, (tokens, loss), target), None)
        before = (tokens, loss)
    return Count(epsilon, None, float(known[-1][0]))


def _crossing(before: tuple[int, float], after: tuple[int, float], target: float) -> float:
    (left, high), (right, low) = before, after
    share = (high - target) / (high - low)
    return math.exp(math.log(left) + share * (math.log(right) - math.log(left)))


def _best_start(u: Array, losses: Array) -> Array:
    """Return (L∞, a, b) of the best of a grid of b, each with its reweighted least-squares L∞ and a."""
    import numpy as np
    from scipy.optimize import nnls

    starts = []
    for b in np.geomspace(EXPONENTS[0] * 1.01, EXPONENTS[1] * 0.99, 40):
        design = np.stack([np.ones_like(u), u ** (-b)], axis=1) / losses[:, None]
        weights = np.ones_like(u)
        for _ in range(_REWEIGHTINGS):
            (l_inf, a), _misfit = nnls(design * weights[:, None], weights)
            residuals = design @ np.array([l_inf, a]) - 1
            weights = np.sqrt(np.minimum(1, _spread(residuals) / np.maximum(np.abs(residuals), _LEAST_NOISE)))
        starts.append((_clipped_rms(residuals), l_inf, a, b))
    return np.array(min(starts)[1:])


def _is_flat(constant: Array, power: Array) -> bool:
    """Say whether one parameter (and the noise) explains the relative residuals no worse than three do, by AICc."""
    n = len(constant)

    def aicc(residuals: Array, parameters: int) -> float:
        penalty = 2 * parameters * n / (n - parameters - 1) if n > parameters + 1 else math.inf
        return 2 * n * math.log(_clipped_rms(residuals)) + penalty

    return aicc(constant, 2) <= aicc(power, 4)


def _spread(residuals: Array) -> float:
    """Return the standard deviation of residuals around 0, from the median so that outliers do not count."""
    import numpy as np

    return max(_LEAST_NOISE, 1.4826 * float(np.median(np.abs(residuals))))


def _clipped_rms(residuals: Array) -> float:
    import numpy as np

    width = 3 * _spread(residuals)
    return max(_LEAST_NOISE, math.sqrt(float(np.mean(np.clip(residuals, -width, width) ** 2))))


def _standard_error(p: Array, u: Array, losses: Array) -> float:
    """Return the standard error of L∞: noise times the root of (JᵀJ)⁻¹; inf if singular."""
    import numpy as np

    power = u ** (-p[2])
    jacobian = np.stack([np.ones_like(u), power, -p[1] * power * np.log(u)], axis=1) / losses[:, None]
    spread = (p[0] + p[1] * power) / losses - 1
    # With a = 0 nothing depends on b, which then takes no degree of freedom.
    columns = jacobian[:, np.linalg.norm(jacobian, axis=0) > 0]
    # Clipped: an outlier that the fit has passed by must not widen the interval either.
    freedom = math.sqrt(len(u) / max(1, len(u) - columns.shape[1]))
    sigma = _clipped_rms(spread) * freedom
    scales = np.linalg.norm(columns, axis=0)
    gram = (columns / scales).T @ (columns / scales)
    if np.linalg.cond(gram) > 1e14:
        return math.inf
    return sigma * math.sqrt(float(np.linalg.inv(gram)[0, 0])) / float(scales[0])
