"""The limit L∞ of a loss curve and the tokens to within ε of it, each with an interval. Pure functions of the curve.

The model: loss(t) = L∞ + a · t^(−b) · (1 + g(t)), and every point scatters about it by a relative σ. g is 0 at the end
of the curve and wanders, the further back the further, as a Brownian motion in log2 t of δ per root doubling: near
its start a curve is no power law. So every point bears on the limit, an early one as far as the curve lets it. The
posterior: uniform in L∞ ≥ 0, a ≥ 0 (given b and δ, by least squares), in ln b, ln σ and over the list of δ; it is drawn
from with a fixed seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.curves.convergence import EPSILONS
from orchestrator.curves.tail import EXPONENTS, LEAST_POINTS, usable_points
from orchestrator.job_states import NO_LIMIT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
else:
    # numpy is loaded where a curve is fitted: `orch status` needs none.
    Array = Any

_DELTAS = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""δ: relative wandering of the excess over L∞ from the power law, per root doubling."""
_DRAWS = 2000
_MOST_POINTS = 48
"""Twelve doublings; before them nothing bears on the limit."""
_LEAST_NOISE = 1e-7
"""Relative noise at least: the rounding of a float32 loss."""
_WIDEST = 2.0
"""Ratio of the ends of an interval of T above which T is censored."""
_TAILS = (0.05, 0.5, 0.95)
"""Quantiles of a 90% interval and of its middle."""
_Z90 = 1.6449
_OUTLYING = (8.0, 0.01)
"""Deviation from the neighbours, in standard deviations and relative, above both of which a point is left out."""


@dataclass(frozen=True)
class Tail:
    """The posterior of a curve's end."""

    l_inf: float
    """Median of the loss it tends to."""
    l_inf_se: float
    """Standard error of l_inf: the longer arm of its 90% interval, over 1.645."""
    b: float
    """Median of the exponent."""
    tokens: Array
    """(n_points,): of the points that were fitted."""
    limits: Array
    """(n_draws,): L∞."""
    paths: Array
    """(n_draws, n_points): the loss without its noise."""


class Count(NamedTuple):
    """Tokens to convergence within ε; of tokens and lower_bound one is None, both with no curve."""

    epsilon: float
    tokens: float | None
    """First tokens at which the curve is ≤ (1 + ε) · L∞."""
    lower_bound: float | None
    """Censored: it takes more than this."""
    low: float | None = None
    """Ends of its 90% interval; None when censored."""
    high: float | None = None


def settled(points: Sequence[tuple[int, float]], outcome: str) -> tuple[Tail | None, list[Count]]:
    """Return the end of the curve of a job that came to an outcome, and its count for each ε that is stored.

    `points` are (tokens_seen, fvu) at a constant learning rate.
    """
    tail = None if outcome in NO_LIMIT else tail_fit(points)
    return tail, [tokens_to_convergence(points, epsilon=epsilon, tail=tail) for epsilon in EPSILONS]


def tokens_to_convergence(points: Sequence[tuple[int, float]], *, epsilon: float, tail: Tail | None) -> Count:
    """Return the first tokens at which the curve is ≤ (1 + ε) · L∞, with a 90% interval; else a lower bound.

    Without its noise: the first point that noise took there would come too early. Censored where the curve ends before
    (its middle or its upper end), or where the interval is wider than a factor of two; the lower bound is then the
    lower end of the interval, at most the end of the curve. A curve whose first point is already there gives that
    point's tokens.
    """
    known = usable_points(points)
    if not known:
        return Count(epsilon, None, None)
    last = float(known[-1][0])
    if tail is None:
        return Count(epsilon, None, last)
    import numpy as np

    low, middle, high = (float(value) for value in np.quantile(_crossings(tail, epsilon), _TAILS, method="lower"))
    if high > _WIDEST * low or high > last:
        return Count(epsilon, None, min(low, last))
    return Count(epsilon, middle, None, low, high)


def tail_fit(points: Sequence[tuple[int, float]]) -> Tail | None:
    """Return the posterior of L∞ and of the curve; `points` are (tokens_seen, fvu) at a constant learning rate.

    None with fewer than `tail.LEAST_POINTS` usable points or less than a doubling of them, where the curve rises, or
    where its points do not determine it.
    """
    usable = usable_points(points)[-_MOST_POINTS:]
    if len(usable) < LEAST_POINTS or usable[-1][0] < 2 * usable[0][0]:
        return None
    import numpy as np

    tokens, losses = np.array(usable, dtype=np.float64).T
    kept, noise = _without_outliers(np.log2(tokens), np.log(losses))
    curve = _Curve(tokens[kept], losses[kept], noise)
    try:
        # What counts as excess depends on L∞: the second round uses that of the first.
        first = _posterior(curve, 0.99 * float(losses[-3:].mean()))
        if first is None:
            return None
        mean = float((first.weights * np.array([one.beta[:, 0] for one in first.fits])).sum())
        second = _posterior(curve, mean)
        return None if second is None else _drawn(curve, second)
    except np.linalg.LinAlgError:  # singular but for rounding: its points lie too close together to tell a limit
        return None


class _Curve(NamedTuple):
    tokens: Array
    losses: Array
    noise: float

    @property
    def ages(self) -> Array:
        """Return log2 of the last tokens over each point's."""
        import numpy as np

        found: Array = np.log2(self.tokens[-1] / self.tokens)
        return found


class _Fits(NamedTuple):
    """Generalised least squares at one δ, for every b."""

    beta: Array
    """(n_b, 2): L∞ and a, the height above it at the last point."""
    spread: Array
    """(n_b, 2, 2): their covariance over σ²."""
    misfit: Array
    """(n_b,): the weighted sum of squares."""
    covariance: Array
    """(n_points, n_points): of the relative residuals, over σ²; beyond the identity it is the wandering's."""
    score: Array
    """(n_b,): the log of the posterior, but for a constant; −inf where the curve rises."""


class _Posterior(NamedTuple):
    exponents: Array
    """(n_b,)"""
    weights: Array
    """(n_delta, n_b): they sum to 1."""
    fits: list[_Fits]


def _posterior(curve: _Curve, level: float) -> _Posterior | None:
    """Return the posterior over b and δ on a grid of b that is narrowed to where it has any weight.

    What lies above `level` is the excess that wanders.
    """
    import numpy as np

    ages, excess = curve.ages, np.maximum(1 - level / curve.losses, 0)
    wander = np.minimum(ages[:, None], ages[None, :]) * excess[:, None] * excess[None, :]
    covariances = [np.eye(len(ages)) + (delta / curve.noise) ** 2 * wander for delta in _DELTAS]
    exponents = np.geomspace(*EXPONENTS, 25)
    for _ in range(6):
        fits = [_fits(curve, exponents, covariance) for covariance in covariances]
        score = np.array([one.score for one in fits])
        if not np.isfinite(score).any():
            return None
        weights = np.exp(score - score.max())
        known = np.flatnonzero(weights.max(axis=0) > 1e-4)
        if len(known) >= 10:
            break
        low, high = exponents[max(0, known[0] - 1)], exponents[min(len(exponents) - 1, known[-1] + 1)]
        exponents = np.geomspace(low, high, 25)
    return _Posterior(exponents, weights / weights.sum(), fits)


def _fits(curve: _Curve, exponents: Array, covariance: Array) -> _Fits:
    import numpy as np

    n, inverse = len(curve.losses), 1 / curve.losses
    powers = inverse * 2.0 ** (exponents[:, None] * curve.ages)
    design = np.stack([np.broadcast_to(inverse, powers.shape), powers], axis=2)
    root = np.linalg.cholesky(covariance)
    whiten = np.linalg.inv(root)
    whitened, target = whiten @ design, whiten.sum(axis=1)
    gram = np.swapaxes(whitened, 1, 2) @ whitened
    spread = np.linalg.inv(gram).astype(np.float64)
    beta = np.einsum("bij,bnj,n->bi", spread, whitened, target)
    left = ((target - np.einsum("bni,bi->bn", whitened, beta)) ** 2).sum(axis=1)
    misfit: Array = np.maximum(left, n * _LEAST_NOISE**2)
    # Uniform in L∞ and a as the plain design sees them: half the log of its determinant cancels that of no wandering.
    plain = np.linalg.slogdet(np.swapaxes(design, 1, 2) @ design)[1]
    score = (plain - np.linalg.slogdet(gram)[1]) / 2 - np.log(np.diag(root)).sum() - (n - 3) / 2 * np.log(misfit)
    error = np.sqrt(misfit / (n - 3))[:, None] * np.sqrt(np.diagonal(spread, axis1=1, axis2=2))
    falls = (beta + 3 * error > 0).all(axis=1)
    return _Fits(beta, spread, misfit, covariance, np.where(falls, score, -np.inf))


def _drawn(curve: _Curve, posterior: _Posterior) -> Tail | None:
    """Draw from the posterior, always the same."""
    import numpy as np

    random, losses, n = np.random.default_rng(0), curve.losses, len(curve.losses)
    counts = random.multinomial(_DRAWS, posterior.weights.ravel()).reshape(posterior.weights.shape)
    limits, paths, exponents = [], [], []
    for one, number in zip(posterior.fits, counts, strict=True):
        at = np.repeat(np.arange(len(number)), number)
        sigma = np.sqrt(one.misfit[at] / random.chisquare(n - 3, len(at)))[:, None]
        steps = np.einsum("dij,dj->di", np.linalg.cholesky(one.spread)[at], random.normal(size=(len(at), 2)))
        beta, noise = one.beta[at] + sigma * steps, random.normal(size=(len(at), n))
        is_allowed = (beta >= 0).all(axis=1)
        at, beta, sigma, noise = at[is_allowed], beta[is_allowed], sigma[is_allowed], noise[is_allowed]
        power = beta[:, :1] + beta[:, 1:] * 2.0 ** (posterior.exponents[at, None] * curve.ages)
        limits.append(beta[:, 0])
        exponents.append(posterior.exponents[at])
        paths.append(power + losses * _wandering(1 - power / losses, one.covariance, sigma * noise))
    limit, exponent = np.concatenate(limits), np.concatenate(exponents)
    if not len(limit):
        return None
    low, middle, high = np.quantile(limit, _TAILS)
    error = float(max(high - middle, middle - low)) / _Z90
    b = float(np.median(exponent))
    return Tail(float(middle), error, b, curve.tokens, limit, np.concatenate(paths))


def _wandering(residuals: Array, covariance: Array, noise: Array) -> Array:
    """Draw the curve's relative distance from the power law, given its relative residuals (n_draws, n_points)."""
    import numpy as np

    wander = covariance - np.eye(len(covariance))
    gain = np.linalg.solve(covariance, wander)
    values, vectors = np.linalg.eigh(wander - wander @ gain)
    drawn: Array = residuals @ gain + noise @ (vectors * np.sqrt(np.maximum(values, 0))).T
    return drawn


def _crossings(tail: Tail, epsilon: float) -> Array:
    """Return, for every draw, the tokens at which its path first is ≤ (1 + ε) · L∞; inf where it ends above."""
    import numpy as np

    targets = (1 + epsilon) * tail.limits
    below = tail.paths <= targets[:, None]
    draw, at = np.arange(len(targets)), below.argmax(axis=1)
    before = np.maximum(at - 1, 0)
    high, low = tail.paths[draw, before], tail.paths[draw, at]
    share = np.where(at > 0, (high - targets) / np.where(high > low, high - low, 1.0), 0.0)
    logs = np.log(tail.tokens)
    crossed = np.exp(logs[before] + share * (logs[at] - logs[before]))
    return np.where(below.any(axis=1), crossed, np.inf)


def _without_outliers(s: Array, v: Array) -> "tuple[NDArray[np.intp], float]":
    """Return the indices of the points that are not far from their neighbours, and the scatter of those about them."""
    import numpy as np

    kept = np.arange(len(s))
    while True:
        off = np.array([_deviation(i, s[kept], v[kept]) for i in range(len(kept))])
        noise = max(_LEAST_NOISE, 1.4826 * float(np.median(np.abs(off))))
        worst = int(np.abs(off).argmax())
        if abs(off[worst]) < max(_OUTLYING[0] * noise, _OUTLYING[1]) or len(kept) <= LEAST_POINTS:
            return kept, noise
        kept = np.delete(kept, worst)


def _deviation(i: int, s: Array, v: Array) -> float:
    """Return a point's distance from the cubic through its four nearest others, in units of one point's error."""
    import numpy as np

    first = min(max(0, i - 2), len(s) - 5)
    others = np.array([at for at in range(first, first + 5) if at != i])
    weights = [math.prod((s[i] - s[m]) / (s[j] - s[m]) for m in others if m != j) for j in others]
    return float((v[i] - np.dot(weights, v[others])) / math.sqrt(1 + sum(w * w for w in weights)))
