"""The lower envelope of all curves that L(C) is fitted to: the best point of each bin of ln C.

Its ends are left out, and so is the smallest n where it is off the trend of the others.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from orchestrator.scaling.fit.estimate import data_of, estimate
from orchestrator.scaling.fit.huber import residuals
from orchestrator.scaling.fit.model_selection import allowed, chosen, score
from orchestrator.scaling.fit.options import Flops, flops_of
from orchestrator.scaling.fit.sample import Observation, Sample
from orchestrator.scaling.forms import Form
from orchestrator.scaling.types import Excluded, JobMeasurement

PER_DECADE = 8
"""Bins of a decade of C."""
END = "an end of the envelope, not fitted"
OFF_TREND = "off-trend: the smallest n, not fitted"
_LEAST_POINTS = 4
"""Of the other sizes, for their trend to judge the smallest by."""
_LEAST_PASSES = 2
"""Changes from one size to the next, for their costs to have a ratio."""
_SIGMAS = 3.0
"""Of the residuals of the trend, beyond which the smallest n is off it."""


class _Best(NamedTuple):
    fvu: float
    flops: float
    row: JobMeasurement


def sample(
    rows: Sequence[JobMeasurement], excluded: Sequence[Excluded], flops: Flops, *, forms: Sequence[Form], name: str,
    k: int,
) -> Sample:  # fmt: skip
    """Return the frontier of one k: in each bin the lowest loss, where it is below all that cost less.

    `forms` are those of the law: the trend of the other sizes, by which the smallest is judged.
    """
    best = _frontier(rows, flops)
    front = [_observation(found) for found in best]
    on_it = {job for one in front for job in one.jobs}
    inner, outer = _within(front)
    off = tuple(Excluded(row.job_id, "off the envelope: others cost less") for row in rows if row.job_id not in on_it)
    notes = (_unit(flops), *_ends(front, outer), *_badly_ended(best))
    whole = Sample(name, rows[0].subject, inner, (*excluded, *off), outer, notes, k)
    return _without_off_trend(whole, forms)


def _frontier(rows: Sequence[JobMeasurement], flops: Flops) -> list[_Best]:
    bins: dict[int, _Best] = {}
    for row in rows:
        for point in row.curve:
            spent = flops_of(point, flops)
            if not (math.isfinite(point.fvu) and 0 < point.fvu < 1 and math.isfinite(spent) and spent > 0):
                continue
            number = math.floor(PER_DECADE * math.log10(spent))
            if number not in bins or point.fvu < bins[number].fvu:
                bins[number] = _Best(point.fvu, spent, row)
    front: list[_Best] = []
    for _, found in sorted(bins.items()):
        if not front or found.fvu < front[-1].fvu:
            front.append(found)
    return front


def _observation(found: _Best) -> Observation:
    row, n = found.row, float(found.row.n_latents or 0)
    return Observation((row.job_id,), found.flops, 1.0, row.k, row.subject, found.fvu, (n, 1.0))


def _within(front: list[Observation]) -> tuple[tuple[Observation, ...], tuple[Observation, ...]]:
    """Part the frontier from its ends, where it is one curve: no smaller, or no larger, n was there to be cheaper.

    The frontier changes from one size to the next at costs whose ratio has a geometric mean; by that ratio it is
    trusted below the first and above the last change.
    """
    entries: dict[float, float] = {}
    for one in front:
        entries.setdefault(one.cell[0], one.x)
    passed = sorted(entries.values())[1:]
    if len(passed) < _LEAST_PASSES:
        return tuple(front), ()
    ratio = (passed[-1] / passed[0]) ** (1 / (len(passed) - 1))
    low, high = passed[0] / ratio, passed[-1] * ratio
    outer = tuple(one._replace(flagged=END) for one in front if not low <= one.x <= high)
    return tuple(one for one in front if low <= one.x <= high), outer


def _ends(front: list[Observation], outer: tuple[Observation, ...]) -> tuple[str, ...]:
    if outer:
        return (f"{len(outer)} points at the ends of the envelope, where it is one job's curve alone, are not fitted.",)
    return ("At its ends the envelope is one job's curve: sizes are too few to say where it ends.",) if front else ()


def _badly_ended(front: Sequence[_Best]) -> tuple[str, ...]:
    """Say which jobs on the envelope have not ended well: their points count as far as their curves go."""
    ends = {found.row.job_id: found.row.outcome or found.row.state for found in front}
    bad = [f"{job} ({end})" for job, end in sorted(ends.items()) if end not in ("converged", "max_tokens")]
    return (f"On the envelope as far as their curves go: jobs {', '.join(bad)}.",) if bad else ()


def _without_off_trend(whole: Sample, forms: Sequence[Form]) -> Sample:
    """Take the smallest n's points out of the fit where they miss the trend of the others by three sigmas."""
    sizes = Counter(one.cell for one in whole.observations)
    smallest = min(sizes, default=None)
    rest = tuple(one for one in whole.observations if one.cell != smallest)
    if smallest is None or len(rest) < max(_LEAST_POINTS, sizes[smallest]) or len(sizes) < 3:
        return whole
    tried = [estimate(form, whole.of(rest)) for form in allowed(forms, whole.of(rest))]
    if not tried:
        return whole
    trend = tried[chosen([score(one, whole.of(rest)) for one in tried])]
    doubted = tuple(one for one in whole.observations if one.cell == smallest)
    missed = residuals(data_of(trend.form, whole.of(doubted)), trend.theta[None])[0]
    spread = max(trend.sigma, float(np.sqrt(np.mean(trend.residuals**2))))
    if abs(float(np.mean(missed))) <= _SIGMAS * spread:
        return whole
    note = (
        f"The smallest n, {smallest[0]:g}, is off the trend of the others by {float(np.mean(missed)):+.1%}: left out."
    )
    shown = tuple(one._replace(flagged=OFF_TREND) for one in doubted)
    return replace(whole, observations=rest, shown=(*shown, *whole.shown), notes=(*whole.notes, note))


def _unit(flops: Flops) -> str:
    counted = {
        "dense": "dense FLOPs of the SAE, 12·n·D a token and what AuxK adds",
        "executed": "FLOPs the SAE executed",
        "subject+executed": "FLOPs the SAE executed and those of the subject's forward pass",
    }[flops]
    return f"C counts {counted}."
