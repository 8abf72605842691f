"""Jobs that the other jobs refute: they are shown with a fit, and not fitted.

A job is judged by the law of the others, fitted without it: by how much it misses, in standard errors of that miss (an
externally studentised residual). A robust loss alone does not do: at an end of the sizes one job can bend a law until
its own residual is small. The smallest n is judged as a whole besides, for a law may hold only above it.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from orchestrator.scaling.fit.estimate import data_of, estimate, starts
from orchestrator.scaling.fit.huber import Data, minimise, residuals, slopes
from orchestrator.scaling.fit.sample import Sample
from orchestrator.scaling.forms import Array, Flags, Form, Numbers

OFF_LAW = "off the law of the other jobs: not fitted"
OFF_TREND = "off-trend: the smallest n, not fitted"
_CHANCE = 0.01
"""Of leaving out any job of a sample whose errors are normal."""
_CHANCE_OF_SMALLEST = 0.0027
"""Of leaving out a smallest n that is on the trend: three sigmas."""
_MOST_SHARE = 0.2
"""Of the jobs can be left out: where more are off, it is the law that is."""
_CANDIDATES = 12
"""Jobs that a law is fitted without, those that miss most first."""
_LEAST_ERROR = 1e-4
"""Of ln(value): no law is known better."""
_KEPT = -np.inf
"""As a bound of ln(value): it is kept always, so that the point does not count."""


class _Miss(NamedTuple):
    """By how much points miss the law of the others."""

    size: float
    """Of ln(value)."""
    errors: float
    """In standard errors."""
    freedom: int

    def is_beyond(self, chance: float) -> bool:
        """Say whether normal errors would be as large with less than this chance (two-sided)."""
        return abs(self.errors) > float(stdtrit(self.freedom, 1 - chance / 2))


def without_outliers(sample: Sample, form: Form) -> Sample:
    """Take the jobs, and the smallest n, that the others refute out of the fit; `form` is the widest they determine."""
    found = sample
    for _ in range(int(_MOST_SHARE * len({one.jobs for one in sample.observations}))):
        fewer = _without_worst(found, form)
        if fewer is found:
            break
        found = fewer
    return _without_smallest(found, form)


def _without_worst(sample: Sample, form: Form) -> Sample:
    """Take out the job that misses the law of the others most, if by more than chance."""
    numbers = {jobs: at for at, jobs in enumerate(dict.fromkeys(one.jobs for one in sample.observations))}
    units = np.array([numbers[one.jobs] for one in sample.observations])
    n_known = len(set(units[~sample.censored].tolist()))
    if n_known - 1 <= form.size:
        return sample
    gone = units[None] == _candidates(sample, form, units)[:, None]
    misses = _misses(sample, form, units, gone)
    worst = int(np.argmax([abs(one.errors) for one in misses]))
    miss, out = misses[worst], gone[worst]
    if not miss.is_beyond(_CHANCE / n_known):
        return sample
    one = sample.observations[int(np.argmax(out))]
    named = f"Job {', '.join(map(str, one.jobs))} (n = {one.cell[0]:g}, k = {one.k})"
    return _left_out(sample, out, OFF_LAW, f"{named} is off the law of the others by {miss.size:+.1%}: left out.")


def _without_smallest(sample: Sample, form: Form) -> Sample:
    """Take out the smallest n where it misses the trend of the others."""
    known = {one.cell for one in sample.observations if not one.censored}
    smallest = min((n for n, _ in known), default=0.0)
    if sum(n > smallest for n, _ in known) <= form.size:
        return sample
    out = np.array([one.cell[0] == smallest for one in sample.observations])
    [miss] = _misses(sample, form, sample.cells, out[None])
    if not miss.is_beyond(_CHANCE_OF_SMALLEST):
        return sample
    note = f"The smallest n, {smallest:g}, is off the trend of the others by {miss.size:+.1%}: left out."
    return _left_out(sample, out, OFF_TREND, note)


def _left_out(sample: Sample, out: Flags, why: str, note: str) -> Sample:
    pairs = list(zip(sample.observations, out.tolist(), strict=True))
    shown = tuple(one._replace(flagged=why) for one, is_out in pairs if is_out)
    kept = tuple(one for one, is_out in pairs if not is_out)
    return replace(sample, observations=kept, shown=(*shown, *sample.shown), notes=(*sample.notes, note))


def _candidates(sample: Sample, form: Form, units: Numbers) -> Numbers:
    """Return the units whose own misfit is the largest once their pull on the law is taken off: r / (1 − leverage)."""
    found = estimate(form, sample)
    known = ~sample.censored
    q = np.linalg.qr(slopes(found.theta, data_of(form, sample).points) + 1e-12)[0]
    free = np.maximum(1.0 - np.sum(q**2, axis=1), 1e-3)
    misfit = np.where(known, np.abs(found.residuals) / free, 0.0)
    largest = np.zeros(units.max() + 1)
    np.maximum.at(largest, units, misfit)
    has_known = np.bincount(units, known) > 0
    return np.array([unit for unit in np.argsort(-largest) if has_known[unit]][:_CANDIDATES])


def _misses(sample: Sample, form: Form, units: Numbers, gone: Flags) -> list[_Miss]:
    """Return the miss of each set of points that is left out, (n_sets, n_points): least squares to the others."""
    first = starts(form, sample)
    data = Data(
        data_of(form, sample).points,
        np.repeat(np.where(gone, _KEPT, sample.logs), len(first), axis=0),
        np.repeat(gone | sample.censored, len(first), axis=0),
        np.inf,
    )
    solution = minimise(data, np.tile(first, (len(gone), 1)), most_steps=40)
    best = np.argmin(solution.objective.reshape(len(gone), -1), axis=1)
    thetas = solution.theta.reshape(len(gone), len(first), -1)[np.arange(len(gone)), best]
    return [_miss(sample, form, theta, units, out) for theta, out in zip(thetas, gone, strict=True)]


def _miss(sample: Sample, form: Form, theta: Array, units: Numbers, out: Flags) -> _Miss:
    """Return the mean miss of the units that are out, with the error of a law fitted to the means of the others."""
    known = ~sample.censored
    counts = np.bincount(units[known], minlength=units.max() + 1)
    there, is_out = counts > 0, np.bincount(units, out) > 0

    def mean(values: Array) -> Array:
        return np.asarray(np.bincount(units[known], values[known], minlength=len(counts)) / np.maximum(counts, 1))

    data = data_of(form, sample)
    left = mean(residuals(data, theta[None])[0])
    slope = np.stack([mean(column) for column in slopes(theta, data.points).T], axis=1)
    rest, tested = there & ~is_out, there & is_out
    freedom = int(rest.sum()) - form.size
    variance = float(np.sum(left[rest] ** 2)) / freedom + _LEAST_ERROR**2
    pull = slope[tested].mean(axis=0)
    n_tested = int(tested.sum())
    of_law = float(pull @ np.linalg.pinv(slope[rest].T @ slope[rest]) @ pull)
    of_steps = float(np.mean(sample.steps[out] ** 2)) / 12
    size = float(left[tested].mean())
    return _Miss(size, size / float(np.sqrt(variance * (1 / n_tested + of_law) + of_steps / n_tested)), freedom)
