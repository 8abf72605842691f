"""L(C): the lower envelope of all curves, one point per bin of ln C, and whether the smallest n is off its trend."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.scaling.eligibility import Flops
from orchestrator.scaling.estimate import data_of, estimate
from orchestrator.scaling.findings import Excluded, Measured
from orchestrator.scaling.laws import form_of
from orchestrator.scaling.robust import residuals
from orchestrator.scaling.samples import Observation, Sample

PER_DECADE = 8
"""Bins of C."""
OFF_TREND = "off-trend: the smallest n, not fitted"
_LEAST = 4
_SIGMAS = 3.0


class _Best(NamedTuple):
    fvu: float
    flops: float
    row: Measured


def sample(rows: Sequence[Measured], excluded: Sequence[Excluded], flops: Flops, *, name: str, subject: str) -> Sample:
    """Return the frontier of one k: in each bin the lowest loss, where it is below all that cost less."""
    front = [_observation(found) for found in _frontier(rows, flops)]
    on_it = {job for one in front for job in one.jobs}
    off = tuple(Excluded(row.job_id, "off the envelope: others cost less") for row in rows if row.job_id not in on_it)
    whole = Sample(name, subject, tuple(front), (*excluded, *off), notes=(_unit(flops),))
    return _without_off_trend(whole)


def cost(point_flops: tuple[float, float, float], flops: Flops) -> float:
    """Return what a point of a curve had cost, of (dense, executed, subject) FLOPs."""
    dense, executed, subject = point_flops
    return {"dense": dense, "executed": executed, "subject+executed": subject + executed}[flops]


def _frontier(rows: Sequence[Measured], flops: Flops) -> list[_Best]:
    bins: dict[int, _Best] = {}
    for row in rows:
        for point in row.curve:
            spent = cost((point.flops_dense, point.flops_executed, point.flops_subject), flops)
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


def _without_off_trend(whole: Sample) -> Sample:
    """Take the smallest n's points out of the fit where they miss the trend of the others by three sigmas."""
    sizes = Counter(one.cell for one in whole.observations)
    smallest = min(sizes, default=None)
    rest = tuple(one for one in whole.observations if one.cell != smallest)
    if smallest is None or len(rest) < max(_LEAST, sizes[smallest]) or len(sizes) < 3:
        return whole
    trend = estimate(form_of("lc", "+e" if len(rest) > 2 * _LEAST else "pure"), whole.of(rest))
    doubted = tuple(one for one in whole.observations if one.cell == smallest)
    missed = residuals(data_of(trend.form, whole.of(doubted)), trend.theta[None])[0]
    if abs(float(np.mean(missed))) <= _SIGMAS * trend.sigma:
        return whole
    told = (
        f"The smallest n, {smallest[0]:g}, is off the trend of the others by {float(np.mean(missed)):+.1%}: left out."
    )
    shown = tuple(one._replace(flagged=OFF_TREND) for one in doubted)
    return Sample(whole.group, whole.subject, rest, whole.excluded, shown, (*whole.notes, told))


def _unit(flops: Flops) -> str:
    counted = {
        "dense": "dense FLOPs of the SAE, 12·n·D a token and what AuxK adds",
        "executed": "FLOPs the SAE executed",
        "subject+executed": "FLOPs the SAE executed and those of the subject's forward pass",
    }[flops]
    return f"C counts {counted}; at its ends the envelope is one job's curve."
