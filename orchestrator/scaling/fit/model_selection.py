"""Which form to choose: AICc, the error at a size that was held out, and the profile of the irreducible term."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from orchestrator.scaling.fit.estimate import CLIP, Estimate, data_of, estimate, freedom, projected
from orchestrator.scaling.fit.huber import minimise, residuals
from orchestrator.scaling.fit.sample import Sample
from orchestrator.scaling.forms import Array, Flags, Form, design
from orchestrator.scaling.types import Score

_GRID = 40
_LEAST_SHARE = 1e-4
"""Of the smallest loss: a floor below it is none."""
_RULED_OUT = 6.0
"""Difference of AICc beyond which the worse of two forms is given up."""
_SINGULAR = 1e-9
"""Of unit regressors: below, they are one another's combinations but for rounding."""


def allowed(forms: Sequence[Form], sample: Sample) -> list[Form]:
    """Return those of some forms that a sample has points enough for."""
    # AICc needs two places more than coefficients; a form that competes with none needs but one.
    return [form for form in forms if _determines(sample, form, spare=2 if form.floor else 1)]


def _determines(sample: Sample, form: Form, *, spare: int) -> bool:
    """Say whether a sample has `spare` places more than the form has coefficients, and sizes enough."""
    known = [one for one in sample.observations if not one.censored]
    sizes, seconds = {one.x for one in known}, {one.z for one in known}
    along = 4 if form.floor else 3  # one more size than coefficients along it
    across = 2 if "z" in form.power else 1
    places = {(one.x, one.z) for one in known}
    enough = len(sizes) >= along and len(seconds) >= across and len(places) >= form.size + spare
    return enough and _tells_apart(form, np.array(sorted(places)))


def _tells_apart(form: Form, places: Array) -> bool:
    """Say whether places, rows of x and z, tell the power terms apart: sizes of one k and ks of one size do not."""
    columns = design(form, places[:, 0], places[:, 1]).power
    rank = np.linalg.matrix_rank(columns / np.linalg.norm(columns, axis=0), tol=_SINGULAR)
    return bool(rank == columns.shape[1])


def score(found: Estimate, sample: Sample) -> Score:
    """Return how well a form did."""
    left = found.residuals[~sample.censored]
    rms = float(np.sqrt(np.mean(left**2)))
    return Score(found.form.name, found.form.size, _aicc(found, _of_places(sample, left)), rms,
                 holdout_error(found.form, sample))  # fmt: skip


def _of_places(sample: Sample, left: Array) -> Array:
    """Return the mean residual at each (x, z): seeds at one place have correlated errors, and are no further points."""
    places = sample.places[~sample.censored]
    counts = np.bincount(places)
    return np.asarray(np.bincount(places, left)[counts > 0] / counts[counts > 0])


def chosen(scores: list[Score]) -> int:
    """Return which form has the lowest AICc; the simplest where no AICc is known."""
    known = [at for at, one in enumerate(scores) if one.aicc is not None]
    return min(known, key=lambda at: scores[at].aicc or 0.0) if known else 0


def rivals(scores: Sequence[Score], form: str) -> list[str]:
    """Return the other forms that AICc does not rule out."""
    limit = min((one.aicc for one in scores if one.aicc is not None), default=0.0) + _RULED_OUT
    return [one.form for one in scores if one.form != form and one.aicc is not None and one.aicc < limit]


def _aicc(found: Estimate, left: Array) -> float | None:
    """Return n·ln(σ²) and AICc's penalty, σ² the mean square of the places' residuals clipped at three sigmas.

    So an outlier does not choose the form. The coefficients alone are counted: every form has a spread besides.
    None where the points are too few.
    """
    n, size = len(left), found.form.size
    if n <= size + 1:
        return None
    width = CLIP * found.sigma
    return n * math.log(max(1e-18, float(np.mean(np.clip(left, -width, width) ** 2)))) + 2 * size * n / (n - size - 1)


def holdout_error(form: Form, sample: Sample) -> float | None:
    """Return |ln(predicted / observed)| at the largest n of a form fitted without it, the mean over its cells."""
    below, there = sample.without_largest()
    if not there.observations or not _determines(below, form, spare=1):
        return None
    missed = residuals(data_of(form, there), estimate(form, below).theta[None])[0]
    cells = there.cells
    return float(np.mean(np.abs(np.bincount(cells, missed) / np.bincount(cells))))


def profile(found: Estimate, sample: Sample) -> tuple[float, float] | None:
    """Return the 90% profile interval of the irreducible term, at the geometric mean of the second variable.

    The floors at which the best fit that has them is not refuted: Q(e) ≤ Q·(1 + t²/ν), Huber's Q, Student's t; and none
    above the lowest loss that was reached. None where the form has no floor.
    """
    if not found.form.floor:
        return None
    free = freedom(found.form, sample)
    bound = 1 + float(stdtrit(free, 0.95)) ** 2 / free
    centre = float(np.mean(np.log(sample.z))) if "z" in found.form.floor else 0.0
    best = _at(found.theta, found.form, centre)
    lowest = float(np.log(_LEAST_SHARE) + sample.logs.min())
    up = np.linspace(best, max(best, float(sample.logs.min())), _GRID)
    down = np.log(np.linspace(math.exp(max(best, lowest)), math.exp(lowest), _GRID))
    high, low = _edges(found, sample, centre, np.stack([up, down]), bound)
    return (0.0 if low <= lowest + 1e-9 else math.exp(low), math.exp(high))


def _at(theta: Array, form: Form, centre: float) -> float:
    floor = theta[len(form.power) :]
    return float(floor[0] + (floor[1] * centre if len(floor) > 1 else 0.0))


def _edges(found: Estimate, sample: Sample, centre: float, grids: Array, bound: float) -> list[float]:
    """Return where, along each grid of ln e, (n_grids, n_values), the misfit first exceeds `bound` times the least.

    Each leads away from the best, where the first begins; all are fitted together.
    """
    misfits = _profiled(found, sample, centre, grids)
    limit = float(misfits[0, 0]) * bound + 1e-24
    closer = _narrowed(grids, misfits > limit)
    ends = _narrowed(closer, _profiled(found, sample, centre, closer) > limit)
    return [float(grid[_GRID // 2]) for grid in ends]


def _narrowed(grids: Array, beyond: Flags) -> Array:
    """Return finer grids of the step of each that first leads beyond; of one where none does, its end over and over."""
    last = grids.shape[1] - 1
    ats = np.where(beyond.any(axis=1), np.argmax(beyond, axis=1), last + 1)
    steps = zip(grids, np.maximum(ats - 1, 0), np.minimum(ats, last), strict=True)
    return np.stack([np.linspace(grid[before], grid[at], _GRID) for grid, before, at in steps])


def _profiled(found: Estimate, sample: Sample, centre: float, logs: Array) -> Array:
    """Return the least misfit with ln e held at each value, in the shape of `logs`."""
    data = data_of(found.form, sample, delta=found.delta)
    n_power = len(found.form.power)
    near = np.repeat(found.theta[None], logs.size, axis=0)
    near[:, n_power] = logs.ravel() - (found.theta[n_power + 1] * centre if len(found.theta) > n_power + 1 else 0.0)
    apart = near.copy()
    apart[:, :n_power] = [projected(data.points, sample.logs, row[n_power:]) for row in near]
    ended = minimise(data, np.concatenate([near, apart]), held=True, most_steps=60)
    return np.asarray(ended.objective.reshape(2, *logs.shape).min(axis=0))
