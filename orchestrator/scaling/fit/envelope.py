"""The lower envelope of all curves that L(C) is fitted to: the best point of each bin of ln C.

Its ends are left out, and its gaps: what is far from where the size of the point touches the envelope.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from orchestrator.scaling.fit.options import Flops, flops_of
from orchestrator.scaling.fit.sample import Observation, Sample
from orchestrator.scaling.types import Excluded, JobMeasurement

PER_DECADE = 8
"""Bins of a decade of C."""
END = "an end of the envelope, not fitted"
GAP = "a gap of the envelope, not fitted"
_LEAST_PASSES = 2
"""Changes from one size to the next, for their costs to have a ratio."""


class _Best(NamedTuple):
    fvu: float
    flops: float
    row: JobMeasurement


def sample(rows: Sequence[JobMeasurement], excluded: Sequence[Excluded], flops: Flops, *, name: str, k: int) -> Sample:
    """Return the frontier of one k: in each bin the lowest loss, where it is below all that cost less."""
    best = _frontier(rows, flops)
    front = [_observation(found) for found in best]
    on_it = {job for one in front for job in one.jobs}
    inner, outer = _within(front)
    off = tuple(Excluded(row.job_id, "off the envelope: others cost less") for row in rows if row.job_id not in on_it)
    notes = (_unit(flops), *_ends(front, outer), *_badly_ended(best))
    return Sample(name, rows[0].subject, inner, (*excluded, *off), outer, notes, k)


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
    """Part the frontier into what lies near the envelope of all sizes, and its ends and gaps.

    A size touches the envelope at one cost, and is trusted as far from it as half a usual step between sizes takes:
    beyond, the frontier is that curve alone, for no other size was there, or the job of one was bad.
    """
    growth, first, usual = _touching(front)
    if not growth > 0:
        return tuple(front), ()
    sizes = [one.cell[0] for one in front]
    ends = first + growth * math.log(min(sizes)), first + growth * math.log(max(sizes))
    inner, outer = [], []
    for one in front:
        cost = math.log(one.x)
        if abs(cost - first - growth * math.log(one.cell[0])) <= growth * usual / 2:
            inner.append(one)
        else:
            outer.append(one._replace(flagged=GAP if ends[0] < cost < ends[1] else END))
    return tuple(inner), tuple(outer)


def _touching(front: list[Observation]) -> tuple[float, float, float]:
    """Return growth and first of ln C = first + growth·ln n, where sizes touch the envelope; and the usual Δ ln n.

    From the costs at which the frontier passes from one size to the next, halfway between their own: the median slope
    and intercept, which a bad job does not move. Growth is 0 where the passages are too few.
    """
    entries: dict[float, float] = {}
    for before, one in pairwise([front[0], *front] if front else []):
        entries.setdefault(one.cell[0], (math.log(before.x) + math.log(one.x)) / 2)
    sizes = np.log(sorted(entries))
    costs = np.array([entries[n] for n in sorted(entries)])[1:]
    if len(costs) < _LEAST_PASSES:
        return 0.0, 0.0, 0.0
    middles = (sizes[1:] + sizes[:-1]) / 2
    low, high = np.triu_indices(len(costs), 1)
    growth = float(np.median((costs[high] - costs[low]) / (middles[high] - middles[low])))
    return growth, float(np.median(costs - growth * middles)), float(np.median(np.diff(sizes)))


def _ends(front: list[Observation], outer: tuple[Observation, ...]) -> tuple[str, ...]:
    kinds = Counter(one.flagged for one in outer)
    lines = []
    if kinds[END]:
        lines.append(
            f"{kinds[END]} points at the ends of the envelope, where it is one job's curve alone, are not fitted."
        )
    elif front and not outer:
        lines.append("At its ends the envelope is one job's curve: sizes are too few to say where it ends.")
    if kinds[GAP]:
        lines.append(
            f"{kinds[GAP]} points in gaps of the envelope, where a size is missing or its job is bad, are not fitted."
        )
    return tuple(lines)


def _badly_ended(front: Sequence[_Best]) -> tuple[str, ...]:
    """Say which jobs on the envelope have not ended well: their points count as far as their curves go."""
    ends = {found.row.job_id: found.row.outcome or found.row.state for found in front}
    bad = [f"{job} ({end})" for job, end in sorted(ends.items()) if end not in ("converged", "max_tokens")]
    return (f"On the envelope as far as their curves go: jobs {', '.join(bad)}.",) if bad else ()


def _unit(flops: Flops) -> str:
    counted = {
        "dense": "dense FLOPs of the SAE, 12·n·D a token and what AuxK adds",
        "executed": "FLOPs the SAE executed",
        "subject+executed": "FLOPs the SAE executed and those of the subject's forward pass",
    }[flops]
    return f"C counts {counted}."
