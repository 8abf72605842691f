"""One form fitted to one sample: many starts, Huber's loss at a width taken from the residuals themselves."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from orchestrator.scaling.fit.huber import Data, minimise, residuals
from orchestrator.scaling.fit.sample import Sample
from orchestrator.scaling.forms import Array, Design, Form, design

HUBER = 1.345
"""Width of Huber's loss in standard deviations: 95% efficient where errors are normal."""
CLIP = 3.0
"""Standard deviations beyond which a residual counts no more when forms are compared and errors drawn anew."""
_SHARES = (1e-3, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)
"""Starts: the floor as a share of the smallest loss; the power terms follow by least squares (variable projection)."""
_TILTS = (0.0, -0.2)
_AT_REST = 1e-3
"""Relative change of the width between two rounds."""
_MOST_ROUNDS = 100
"""Where the width goes to and fro between two values."""
_LEAST_SIGMA = 1e-9


class Estimate(NamedTuple):
    """A form fitted to a sample."""

    form: Form
    theta: Array
    """(size,)."""
    sigma: float
    """Standard deviation of the log residuals, from their median, degrees of freedom respected."""
    residuals: Array
    """ln(observed / predicted); 0 where a bound is kept. (n_points,)."""
    converged: bool

    @property
    def delta(self) -> float:
        """Return the width of Huber's loss."""
        return HUBER * self.sigma


def data_of(form: Form, sample: Sample, *, delta: float = np.inf) -> Data:
    """Return a sample as the regression takes it."""
    return Data(design(form, sample.x, sample.z), sample.logs, sample.censored, delta)


@lru_cache(maxsize=4)  # the widest form is fitted to look for outliers, and of a sample without any once more
def estimate(form: Form, sample: Sample) -> Estimate:
    """Fit a form: least squares from every start, then Huber from the best few, its width renewed until it rests."""
    data = data_of(form, sample)
    found = minimise(
        data, starts(form, sample), most_steps=40
    )  # a start that does not converge need not be followed to its end
    best = found.theta[np.argsort(found.objective)[:3]]
    known = ~sample.censored
    n_places = len(set(sample.places[known]))
    left, sigma = residuals(data, best[:1])[0], math.inf
    for _ in range(_MOST_ROUNDS):
        before, sigma = sigma, spread(left[known], n_places=n_places, n_coefficients=form.size)
        found = minimise(data._replace(delta=HUBER * sigma), best)
        order = np.argsort(found.objective)
        best = found.theta[order]
        left = residuals(data, best[:1])[0]
        if abs(sigma - before) <= _AT_REST * sigma:
            break
    return Estimate(form, best[0], sigma, left, bool(found.converged[order[0]]))


def freedom(form: Form, sample: Sample) -> int:
    """Return the degrees of freedom of the residuals: those of cells, for the errors of one cell are correlated."""
    known = {one.cell for one in sample.observations if not one.censored}
    return max(1, len(known) - form.size)


def spread(left: Array, *, n_places: int, n_coefficients: int) -> float:
    """Return the standard deviation of residuals from the median of their sizes, degrees of freedom respected.

    Errors of seeds at one place are correlated: it is places that count as degrees of freedom. As many of them as there
    are coefficients can be met exactly, and say nothing: the median is of the others, or the width would shrink to 0.
    """
    if not len(left):
        return _LEAST_SIGMA
    met = len(left) * min(n_coefficients, n_places - 1) // n_places
    return max(_LEAST_SIGMA, 1.4826 * float(np.median(np.sort(np.abs(left))[met:])))


def starts(form: Form, sample: Sample) -> Array:
    """Return starting points, (n_starts, size)."""
    logs, points = sample.logs, design(form, sample.x, sample.z)
    if not form.floor:
        return np.asarray(np.linalg.lstsq(points.power, logs, rcond=None)[0][None], dtype=np.float64)
    lowest = float(logs.min())
    found = []
    for share in _SHARES:
        for tilt in _TILTS if len(form.floor) > 1 else (0.0,):
            floor = np.array([lowest + np.log(share), tilt][: len(form.floor)])
            found.append(np.concatenate([projected(points, logs, floor), floor]))
    return np.array(found)


def projected(points: Design, logs: Array, floor: Array) -> Array:
    """Return the power terms that fit best above a given floor."""
    left = np.exp(logs) - np.exp(points.floor @ floor)
    usable = left > 1e-3 * np.exp(logs)
    weights = np.where(usable, left / np.exp(logs), 0.0)  # ln(loss − e) errs the more, the less is left of the loss
    target = np.log(np.where(usable, left, 1.0))
    return np.asarray(np.linalg.lstsq(points.power * weights[:, None], target * weights, rcond=None)[0])
