"""Huber's loss of residuals, with its first and second derivative, summed over the points of each place.

A place is an n and a k: its points, such as seeds, have one value of the law. With r = ln(observed) − value, the loss
is r²/2 within δ and δ·|r| − δ²/2 beyond. Where places have several points each, those are sorted once, and every sum is
then a difference of running sums: a fit over a hundred seeds costs little more than one over their means.
"""

from typing import NamedTuple, Protocol

import numpy as np

from orchestrator.scaling.forms import Array, Flags, Numbers

_OUTSIDE = 0.3
"""Beyond delta Huber's loss has no curvature: this share of δ/|r| instead keeps the rank of the Hessian."""


class Losses(NamedTuple):
    """What the points of some fits come to."""

    objective: Array
    """Σ loss over all points, (n_fits,)."""
    pulls: Array
    """−∂loss/∂value, summed over the points of each place, (n_fits, n_places)."""
    bends: Array
    """∂²loss/∂value², likewise; beyond δ what is taken for it."""


class Observed(Protocol):
    """The observations that some fits are made to."""

    def of(self, fits: Numbers) -> "Observed":
        """Return those of some of the fits."""

    def losses(self, values: Array) -> Losses:
        """Return the losses at values of the law, (n_fits, n_places)."""


class SinglePoints(NamedTuple):
    """Observations whose points are each a place of its own."""

    observed: Array
    """ln of what was observed, (n_fits, n_points)."""
    censored: Flags
    """Where the truth is above that: a bound that is kept costs nothing."""
    delta: float

    def of(self, fits: Numbers) -> "SinglePoints":
        """Return those of some of the fits."""
        return self._replace(observed=self.observed[fits], censored=self.censored[fits])

    def losses(self, values: Array) -> Losses:
        """Return the losses at values of the law, (n_fits, n_places)."""
        has_bounds, delta = bool(self.censored.any()), self.delta
        left = self.observed - values
        if has_bounds:
            left = np.where(self.censored, np.maximum(left, 0.0), left)
        clipped = np.clip(left, -delta, delta)
        objective = np.sum(clipped * (left - 0.5 * clipped), axis=1)
        sizes = np.abs(left)
        bends = np.where(sizes <= delta, 1.0, np.minimum(1.0, _OUTSIDE * delta / np.maximum(sizes, 1e-300)))
        if has_bounds:
            bends *= ~self.censored | (left > 0)
        return Losses(objective, clipped, bends)


class SortedPoints(NamedTuple):
    """Observations of places with several points each, as running sums; fits to the same ones share a row."""

    rows: Numbers
    """Of each fit, (n_fits,)."""
    known: "_Running"
    bounds: "_Running | None"
    """Of censored points; None where there are none."""
    delta: float

    @classmethod
    def of_places(
        cls, observed: Array, censored: Flags, counts: Numbers, *, n_fits: int, delta: float
    ) -> "SortedPoints":
        """Take observations, (n_rows, n_points), beside each other by place, with the number of points of each place.

        There is a row for each fit, or one for all.
        """
        rows = np.arange(n_fits) if len(observed) == n_fits else np.zeros(n_fits, dtype=int)
        known = _running(observed, ~censored, counts, is_sorted=bool(np.isfinite(delta)))
        can_be_broken = censored & np.isfinite(observed)
        bounds = _running(observed, can_be_broken, counts, is_sorted=True) if can_be_broken.any() else None
        return cls(rows, known, bounds, delta)

    def of(self, fits: Numbers) -> "SortedPoints":
        """Return those of some of the fits."""
        return self._replace(rows=self.rows[fits])

    def losses(self, values: Array) -> Losses:
        """Return the losses at values of the law, (n_fits, n_places)."""
        found = self.known.losses(self.rows, values, self.delta)
        if self.bounds is None:
            return found
        return Losses(*map(np.add, found, self.bounds.losses(self.rows, values, self.delta, is_bound=True)))


class _Running(NamedTuple):
    """Points sorted within each place; what does not count is last there, and 0 in the sums."""

    points: Array
    """Less their place's `middle`, (n_rows, n_points)."""
    sums: Array
    """Of the points before each, (n_rows, n_points + 1)."""
    squares: Array
    middle: Array
    """Mean of each place, (n_rows, n_places): near it no digits are lost to differences of large sums."""
    first: Numbers
    """Where each place begins, (n_places,)."""
    counts: Numbers
    """Points of each place that count, (n_rows, n_places)."""

    def losses(self, rows: Numbers, values: Array, delta: float, *, is_bound: bool = False) -> Losses:
        """Return the losses at values, (n_fits, n_places); of bounds, those alone that are not kept."""
        value, counts = values - self.middle[rows], self.counts[rows]
        first = rows[:, None] * self.sums.shape[1] + self.first  # in the flat running sums
        has_lines = bool(np.isfinite(delta))
        low, high = np.zeros_like(counts), counts
        if is_bound or has_lines:
            low = self._below(rows, value if is_bound else value - delta)
        if has_lines:
            high = self._below(rows, value + delta)
        until_low, until_high = self.sums.take(first + low), self.sums.take(first + high)
        inside, total = high - low, until_high - until_low
        squares = self.squares.take(first + high) - self.squares.take(first + low)
        pulls, bends = total - inside * value, inside.astype(float)
        loss = 0.5 * (squares - value * (total + pulls))
        if has_lines:
            above = self.sums.take(first + counts) - until_high - (counts - high) * value
            beyond = [(1, counts - high, above)]
            if not is_bound:
                beyond.append((-1, low, low * value - (until_low - self.sums.take(first))))
            for sign, number, distance in beyond:
                loss += delta * (distance - 0.5 * delta * number)
                pulls += sign * delta * number
                # As if each were as far off as their mean: a way to the same minimum.
                bends += _OUTSIDE * delta * number**2 / np.maximum(distance, 1e-300)
        return Losses(np.sum(loss, axis=1), pulls, bends)

    def _below(self, rows: Numbers, limits: Array) -> Numbers:
        """Return how many points of each place are below a limit, (n_fits, n_places), by halving."""
        counts, width = self.counts[rows], self.points.shape[1]
        before = rows[:, None] * width + self.first - 1
        found = np.zeros_like(counts)
        step = 1 << int(counts.max(initial=0)).bit_length() >> 1
        while step:
            tried = found + step
            is_below = (tried <= counts) & (self.points.take(before + tried, mode="clip") < limits)
            found += step * is_below
            step >>= 1
        return found


def _running(observed: Array, is_counted: Flags, counts: Numbers, *, is_sorted: bool) -> _Running:
    first = np.cumsum(counts) - counts
    n_counted, every = np.broadcast_to(counts, (len(observed), len(counts))), bool(is_counted.all())
    if not every:
        n_counted = np.add.reduceat(is_counted, first, axis=1, dtype=int)
        observed = np.where(is_counted, observed, 0.0)
    middle = np.add.reduceat(observed, first, axis=1) / np.maximum(n_counted, 1)
    points = observed - np.repeat(middle, counts, axis=1)
    if not every:
        points[~is_counted] = np.inf
    if is_sorted or not every:
        for start, number in zip(first.tolist(), counts.tolist(), strict=True):
            points[:, start : start + number].sort(axis=1)
    finite = points if every else np.where(points < np.inf, points, 0.0)
    sums, squares = (np.zeros((len(points), points.shape[1] + 1)) for _ in range(2))
    np.cumsum(finite, axis=1, out=sums[:, 1:])
    np.cumsum(finite * finite, axis=1, out=squares[:, 1:])
    return _Running(points, sums, squares, middle, first, n_counted)
