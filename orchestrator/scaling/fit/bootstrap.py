"""Refits of a form to resampled losses: how far its coefficients may be off.

A residual bootstrap: the sizes stay, the errors are drawn anew. A cell is one n and k. The mean error of a cell is
drawn from those of all cells; within it, the errors between seeds are drawn. With six cells and three coefficients only
three degrees of freedom are left: each refit therefore has a spread of its own, σ̂·√(ν/χ²_ν), which widens the
intervals as Student's t does.
"""

from typing import NamedTuple

import numpy as np

from orchestrator.scaling.fit.estimate import CLIP, Estimate, data_of, freedom
from orchestrator.scaling.fit.huber import minimise, slopes
from orchestrator.scaling.fit.sample import Sample
from orchestrator.scaling.forms import Array, Flags, Form, Numbers, exponents, log_values

STEEPEST = 3.0
"""Eightfold for every doubling: no law is steeper. Steeper power terms describe the smallest size alone."""

STEEPEST_FLOOR = 1.0
"""Of the irreducible term in k: twofold for every doubling. Where there is no such term, any tilt fits as well."""


_AT_ONCE = 1_000_000
"""Draws that are made together."""


class Refits(NamedTuple):
    """The parameters of every refit that converged."""

    theta: Array
    """(n_refits, size)."""
    failed: int
    """Refits that did not converge, left out."""


class _Errors(NamedTuple):
    """Where the errors of refits are drawn from."""

    between: Array
    """Standardised mean errors of the cells, of unit variance."""
    sizes: Array
    """Standard deviation of each cell's mean error, (n_cells,)."""
    within: Array
    """Errors of seeds around their cell, centred."""


def refit(found: Estimate, sample: Sample, *, n_refits: int, seed: int) -> Refits:
    """Fit the form again to n_refits samples drawn from what it left over."""
    random = np.random.default_rng(seed)
    data = data_of(found.form, sample, delta=found.delta)
    drawn = _drawn(found, sample, n_refits, random)
    if sample.steps.any():  # where in its step the truth lies is not in the residuals
        drawn += sample.steps * random.uniform(-0.5, 0.5, size=drawn.shape)
    observed = np.add(log_values(found.theta[None], data.points)[0], drawn, out=drawn)
    # A bound is known exactly: only what was measured can come out differently.
    observed[:, sample.censored] = sample.logs[sample.censored]
    solution = minimise(data._replace(observed=observed), np.repeat(found.theta[None], n_refits, axis=0))
    kept = solution.converged & np.isfinite(solution.theta).all(axis=1)
    return Refits(solution.theta[kept], int((~kept).sum()))


def is_runaway(form: Form, theta: Array, sample: Sample) -> Flags:
    """Say which fits, (n_fits, size), have an exponent in x that no law has, offset by a floor; or such a floor."""
    if not form.floor:
        return np.zeros(len(theta), dtype=bool)
    is_steep = (np.abs(exponents(form, theta, np.unique(sample.z))) > STEEPEST).any(axis=1)
    tilts = theta[:, len(form.power) + 1 :]
    return np.asarray(is_steep | (np.abs(tilts) > STEEPEST_FLOOR).any(axis=1))


def sober(form: Form, theta: Array, sample: Sample) -> Array | None:
    """Return the fits, (n_fits, size), that did not run away; None where half of them or more did."""
    kept = theta[~is_runaway(form, theta, sample)]
    return kept if 2 * len(kept) > len(theta) else None


def _drawn(found: Estimate, sample: Sample, n_refits: int, random: np.random.Generator) -> Array:
    """Return errors, (n_refits, n_points)."""
    errors = _errors(found, sample)
    cells, free = sample.cells, freedom(found.form, sample)
    picked = errors.between[random.integers(len(errors.between), size=(n_refits, len(errors.sizes)))]
    drawn = (picked * errors.sizes)[:, cells]
    if len(errors.within):
        for part in np.array_split(drawn, max(1, drawn.size // _AT_ONCE)):  # the same draws, without as many numbers
            part += errors.within[random.integers(len(errors.within), size=part.shape)]
    widened = np.sqrt(free / random.chisquare(free, size=(n_refits, 1)))
    return np.multiply(drawn, np.minimum(widened, 10.0), out=drawn)


def _errors(found: Estimate, sample: Sample) -> _Errors:
    cells, known = sample.cells, ~sample.censored
    # What Huber's loss bounded when it fitted is bounded here: one pair of seeds or one cell does not set all widths.
    left = np.clip(found.residuals, -CLIP * found.sigma, CLIP * found.sigma)
    counts = np.bincount(cells[known], minlength=cells.max() + 1)
    means = np.bincount(cells[known], left[known], minlength=cells.max() + 1) / np.maximum(counts, 1)
    within = (left - means[cells])[known & (counts[cells] > 1)]
    surplus = int((counts[counts > 1] - 1).sum())
    inside = float(np.sum(within**2) / surplus) if surplus else 0.0
    has = counts > 0
    raw = means[has] / np.sqrt(np.maximum(1.0 - _leverage(found, sample, cells)[has], 0.1))
    raw -= raw.mean()
    variance = float(np.sum(means[has] ** 2)) / freedom(found.form, sample)
    beyond = max(0.0, variance - inside * float(np.mean(1.0 / counts[has]))) if surplus else variance
    unit = raw / max(float(np.sqrt(np.mean(raw**2))), 1e-300)
    # The draws within a cell bring their share of the mean's error with them: between cells the rest is drawn.
    return _Errors(unit, np.full(len(counts), np.sqrt(beyond)), _inflated(within, surplus))


def _inflated(within: Array, surplus: int) -> Array:
    return within * np.sqrt(len(within) / surplus) if surplus else within


def _leverage(found: Estimate, sample: Sample, cells: Numbers) -> Array:
    """Return each cell's leverage, below 1: how far its own mean pulls the fit."""
    points = data_of(found.form, sample).points
    q = np.linalg.qr(slopes(found.theta, points) + 1e-12)[0]
    return np.asarray(np.minimum(np.bincount(cells, np.sum(q**2, axis=1)), 1.0))
