"""Which of very many jobs are drawn and listed one by one: some hundreds, the same ones in every figure and table."""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar
from zlib import crc32

from orchestrator.scaling.types import JobMeasurement

MOST_SHOWN = 200
"""Of more, a page takes minutes to draw, and no eye tells them apart."""

Shown = TypeVar("Shown")


def sampled(items: Sequence[Shown], job: Callable[[Shown], int]) -> list[Shown]:
    """Return all of some things, in their order; of very many a sample by the numbers of their jobs.

    The order of the sampling is that of a hash: neither a seed nor a size of a grid comes up more often than another.
    """
    if len(items) <= MOST_SHOWN:
        return list(items)
    order = sorted(range(len(items)), key=lambda at: crc32(str(job(items[at])).encode()))
    return [items[at] for at in sorted(order[:MOST_SHOWN])]


def with_curves(rows: Sequence[JobMeasurement]) -> list[JobMeasurement]:
    """Return the jobs whose curves are drawn, of very many a sample; whether a job has a curve its last loss tells."""
    return sampled([row for row in rows if row.fvu is not None], lambda row: row.job_id)


def told(shown: Collection[object], everything: Collection[object], what: str) -> str:
    """Say `200 of 5,000 curves shown`; empty where all are."""
    return f"{len(shown):,} of {len(everything):,} {what} shown" if len(shown) < len(everything) else ""
