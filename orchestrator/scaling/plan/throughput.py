"""How fast a device trained, from the jobs that ended on it: a forecast of hours is made from it."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from orchestrator.curves.point import Point
from orchestrator.formatting import Interval
from orchestrator.scaling.types import JobMeasurement


class Speed(NamedTuple):
    """FLOPs that a device executed per second of training, the subject's included."""

    device: str
    flops_per_second: Interval
    """Median and 90% of the jobs."""
    tokens_per_second: float
    """Median of the jobs."""
    n_latents: int
    """Of the jobs."""
    jobs: tuple[int, ...]


def device_of(rows: Sequence[JobMeasurement]) -> str | None:
    """Return the device on which most jobs ended; None where none did."""
    found = Counter(row.device for row in rows if row.device and _pace(row))
    return min(found, key=lambda name: (-found[name], name)) if found else None


def speed(rows: Sequence[JobMeasurement], *, device: str | None, n_latents: int) -> Speed | None:
    """Return the speed of a device at the measured size nearest to `n_latents`; None where no job ended on it.

    A step of another size takes as much longer as it has more FLOPs: close to the truth for larger sizes, where the
    products are nearly all there is.
    """
    timed = [(row, pace) for row in rows if row.device == device and row.n_latents and (pace := _pace(row))]
    if device is None or not timed:
        return None
    near = min((row.n_latents or 1 for row, _ in timed), key=lambda n: (abs(math.log(n / n_latents)), -n))
    there = [(row, pace) for row, pace in timed if row.n_latents == near]
    tokens = median(row.curve[-1].tokens_seen / row.curve[-1].wall_seconds for row, _ in there)
    ids = tuple(row.job_id for row, _ in there)
    return Speed(device, spread([pace for _, pace in there]), tokens, near, ids)


def spread(values: Sequence[float]) -> Interval:
    """Return the median of values, and the 5% and 95% of them."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return Interval(median(ordered), ordered[math.floor(0.05 * last)], ordered[math.ceil(0.95 * last)])


def subject_flops(rows: Sequence[JobMeasurement]) -> float:
    """Return the subject's FLOPs per training token: the median of the jobs, which share what they capture together."""
    shares = [row.curve[-1].flops_subject / row.curve[-1].tokens_seen for row in rows if row.curve and _pace(row)]
    return median(shares) if shares else 0.0


def executed(point: Point) -> float:
    """Return all FLOPs executed up to a point."""
    return point.flops_executed + point.flops_subject


def _pace(row: JobMeasurement) -> float | None:
    """Return a finished job's FLOPs per second; None where it tells none."""
    if row.state != "succeeded" or not row.curve:
        return None
    last = row.curve[-1]
    pace = executed(last) / last.wall_seconds if last.wall_seconds and last.wall_seconds > 0 else math.nan
    return pace if math.isfinite(pace) and pace > 0 else None
