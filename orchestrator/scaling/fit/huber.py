"""Huber regression of ln(loss) on a form, many fits at once: a damped Newton method on arrays of (n_fits, …).

The gradient and the Hessian are analytic. With s the share of the floor, ∂f = [(1−s)·power, s·floor] and
∂²f = s(1−s)·d·dᵀ, d = [power, −floor]. The Hessian's eigenvalues enter by their size, so that every step goes down.
"""

from typing import NamedTuple

import numpy as np

from orchestrator.scaling.fit.losses import Observed, SinglePoints, SortedPoints
from orchestrator.scaling.forms import Array, Design, Flags, Numbers, log_values

TOLERANCE = 1e-12
"""Largest fall of the objective, relative, that a converged fit could still make."""
_ROUNDING = 1e-14
"""Of ln(loss): below, a misfit is rounding."""
_MOST_STEPS = 1000
_LONGEST = 4.0
"""In standardised parameters: longer steps are cut, for a floor may run away towards ln 0."""
_AT_ONCE = 400_000
"""Values of (n_fits, n_points) that are worked on together: what a cache holds."""
_SORTED_AT_ONCE = 1_000_000
"""Where they are sorted by places, which each step then reads a few of."""


class Data(NamedTuple):
    """What is fitted."""

    points: Design
    observed: Array
    """ln of what was observed: (n_points,), or (n_fits, n_points)."""
    censored: Flags
    """(n_points,) or (n_fits, n_points) of bool: the truth is above what was observed."""
    delta: float
    """Where Huber's loss turns from squares to lines; inf: least squares."""


class Solution(NamedTuple):
    """The end of each fit."""

    theta: Array
    """(n_fits, size)."""
    objective: Array
    """Σ Huber(residual), (n_fits,)."""
    converged: Flags
    """(n_fits,) of bool."""


class _Fitted(NamedTuple):
    points: Design
    """Of each place."""
    observed: Observed
    n_points: int


class _State(NamedTuple):
    objective: Array
    gradient: Array
    hessian: Array


def minimise(data: Data, starts: Array, *, held: bool = False, most_steps: int = _MOST_STEPS) -> Solution:
    """Fit from each start, shape (n_fits, size); `held` keeps each start's floor at the mean of its regressors."""
    standard, back = _standardised(data.points)
    order, counts = _places(data.points)
    if counts is not None:
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        standard = Design(standard.power[order][first], standard.floor[order][first])
    inner = starts @ np.linalg.inv(back).T
    n_points = len(data.points.power)
    size = max(1, (_AT_ONCE if counts is None else _SORTED_AT_ONCE) // max(1, n_points))
    parts = []
    for at in range(0, len(starts), size):
        now = inner[at : at + size]
        fitted = _Fitted(standard, _observed(data, order, counts, slice(at, at + len(now)), n_fits=len(now)), n_points)
        parts.append(_descend(fitted, now, held, most_steps))
    theta, objective, converged = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Solution(theta @ back.T, objective, converged)


def _observed(data: Data, order: Numbers | slice, counts: Numbers | None, fits: slice, *, n_fits: int) -> Observed:
    """Return what some of the fits are made to, their points in order of places."""
    observed = np.atleast_2d(data.observed[fits] if data.observed.ndim == 2 else data.observed)
    censored = np.atleast_2d(data.censored[fits] if data.censored.ndim == 2 else data.censored)
    n_rows = n_fits if counts is None else max(len(observed), len(censored))
    observed = np.broadcast_to(observed[:, order], (n_rows, observed.shape[1]))
    censored = np.broadcast_to(censored[:, order], observed.shape)
    if counts is None:
        return SinglePoints(observed, censored, data.delta)
    return SortedPoints.of_places(observed, censored, counts, n_fits=n_fits, delta=data.delta)


def residuals(data: Data, theta: Array) -> Array:
    """Return ln(observed) − f, 0 where a bound is kept; (n_fits, n_points)."""
    found = data.observed - log_values(theta, data.points)[0]
    return np.where(data.censored, np.maximum(found, 0.0), found)


def slopes(theta: Array, points: Design) -> Array:
    """Return ∂f/∂θ of one fit, (n_points, size)."""
    share = log_values(theta[None], points)[1][0][:, None]
    return np.concatenate([(1 - share) * points.power, share * points.floor], axis=1)


def _places(points: Design) -> tuple[Numbers | slice, Numbers | None]:
    """Return the order in which points of one place are beside each other, and how many each place has; None: one.

    What depends on the place alone, an exponential above all, is then worked out once for all of its points.
    """
    rows = np.ascontiguousarray(np.concatenate([points.power, points.floor], axis=1))
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    if 2 * len(counts) > len(rows):
        return slice(None), None
    return np.argsort(inverse, kind="stable"), counts


def _standardised(points: Design) -> tuple[Design, Array]:
    """Return regressors with orthonormal columns, and the matrix that turns their parameters into ours."""
    n_power, n_floor = points.power.shape[1], points.floor.shape[1]
    back = np.zeros((n_power + n_floor, n_power + n_floor))
    turned = []
    for block, at in ((points.power, 0), (points.floor, n_power)):
        width = block.shape[1]
        q, r = np.linalg.qr(block)
        scale = np.sqrt(len(block))
        turned.append(q * scale)
        back[at : at + width, at : at + width] = np.linalg.inv(r) * scale if width else r
    return Design(turned[0], turned[1]), back


def _descend(data: _Fitted, theta: Array, held: bool, most_steps: int) -> Solution:
    theta = theta.copy()
    n_fits = len(theta)
    damping = np.full(n_fits, 1e-3)
    done = np.zeros(n_fits, dtype=bool)
    state = _state(data, theta)
    floor = data.n_points * _ROUNDING**2
    for _ in range(most_steps):
        open_ = np.flatnonzero(~done)
        if not len(open_):
            break
        now = _State(*(part[open_] for part in state))
        step, fall = _step(_hold(now, data.points.power.shape[1]) if held else now, damping[open_])
        tried = theta[open_] + step
        some = data if len(open_) == n_fits else data._replace(observed=data.observed.of(open_))
        new = _state(some, tried)
        better = new.objective <= now.objective
        done[open_] = fall <= TOLERANCE * now.objective + floor
        damping[open_] = np.where(better, damping[open_] * 0.1, np.minimum(damping[open_] * 10 + 1e-6, 1e12))
        kept = open_[better]
        theta[kept] = tried[better]
        for all_, fresh in zip(state, new, strict=True):
            all_[kept] = fresh[better]
    return Solution(theta, state.objective, done)


def _hold(state: _State, at: int) -> _State:
    """Take one parameter out of the next step: the first of the floor, which is its mean in standardised regressors."""
    gradient, hessian = state.gradient.copy(), state.hessian.copy()
    gradient[:, at] = 0.0
    hessian[:, at, :] = hessian[:, :, at] = 0.0
    hessian[:, at, at] = 1.0
    return _State(state.objective, gradient, hessian)


def _step(state: _State, damping: Array) -> tuple[Array, Array]:
    """Return the step of each fit, and by how much the undamped one would lower the objective."""
    scale = np.sqrt(np.maximum(np.abs(np.einsum("fii->fi", state.hessian)), 1e-30))
    scaled = state.hessian / (scale[:, :, None] * scale[:, None, :])
    values, vectors = np.linalg.eigh(scaled)
    sizes = np.maximum(np.abs(values), 1e-13)
    along = np.einsum("fij,fi->fj", vectors, state.gradient / scale)
    step = -np.einsum("fij,fj->fi", vectors, along / (sizes + damping[:, None])) / scale
    length = np.linalg.norm(step, axis=1, keepdims=True)
    return step * np.minimum(1.0, _LONGEST / np.maximum(length, 1e-300)), 0.5 * np.sum(along**2 / sizes, axis=1)


def _state(data: _Fitted, theta: Array) -> _State:
    points, n_power = data.points, data.points.power.shape[1]
    values, share = log_values(theta, points)
    objective, clipped, inside = data.observed.losses(values)
    rest = 1.0 - share
    gradient = -np.concatenate([(clipped * rest) @ points.power, (clipped * share) @ points.floor], axis=1)
    bend = clipped * share * rest
    hessian = np.empty((*theta.shape, theta.shape[1]))
    hessian[:, :n_power, :n_power] = _gram(inside * rest * rest - bend, points.power, points.power)
    if points.floor.shape[1]:
        hessian[:, n_power:, n_power:] = _gram(inside * share * share - bend, points.floor, points.floor)
        mixed = _gram(inside * share * rest + bend, points.power, points.floor)
        hessian[:, :n_power, n_power:] = mixed
        hessian[:, n_power:, :n_power] = mixed.transpose(0, 2, 1)
    return _State(objective, gradient, hessian)


def _gram(weights: Array, left: Array, right: Array) -> Array:
    """Return Σ weight · left · rightᵀ over the points: (n_fits, left terms, right terms)."""
    products = (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)
    return (weights @ products).reshape(len(weights), left.shape[1], right.shape[1])
