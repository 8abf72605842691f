"""Jobs as they were after a given number of training tokens, converged or not: for laws at equal tokens."""

import math
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.curves.point import Point
from orchestrator.formatting import whole
from orchestrator.scaling.types import JobMeasurement


def at_tokens(row: JobMeasurement, tokens: int) -> JobMeasurement:
    """Return a job with the fvu and L0 that its curve has at so many tokens: nan where it does not reach them.

    Between two points fvu is read off the straight line in log-log.
    """
    before, after = _around(row.curve, tokens)
    fvu = math.nan if before is None or after is None else _between(before, after, tokens)
    return replace(row, tokens_seen=tokens, fvu=fvu, l0=row.l0 if after is None else after.l0)


def common_tokens(rows: Sequence[JobMeasurement]) -> int | None:
    """Return the largest number of tokens that the curve of every job which has a result reaches; None without one."""
    ends = [row.curve[-1].tokens_seen for row in rows if row.curve and _has_result(row)]
    return min(ends, default=None)


def why_not_there(row: JobMeasurement, tokens: int | None) -> str:
    """Return why a job has no loss at so many tokens; empty where it has. A job that still runs may have one."""
    if row.n_latents is None:
        return "its number of latents is not known: no attempt has told"
    if tokens is None or not row.curve:
        return "no curve is stored of it"
    if math.isnan(at_tokens(row, tokens).fvu or math.nan):
        first, last = row.curve[0].tokens_seen, row.curve[-1].tokens_seen
        return f"its curve goes from {whole(first)} to {whole(last)} tokens, not to {whole(tokens)}"
    return ""


def _has_result(row: JobMeasurement) -> bool:
    return row.state == "succeeded" and row.outcome != "diverged"


def _around(curve: Sequence[Point], tokens: int) -> tuple[Point | None, Point | None]:
    """Return the last point up to some tokens and the first from there on."""
    before = [point for point in curve if point.tokens_seen <= tokens]
    after = [point for point in curve if point.tokens_seen >= tokens]
    return (before[-1] if before else None), (after[0] if after else None)


def _between(before: Point, after: Point, tokens: int) -> float:
    if before.tokens_seen == after.tokens_seen or min(before.fvu, after.fvu) <= 0:
        return after.fvu
    part = math.log(tokens / before.tokens_seen) / math.log(after.tokens_seen / before.tokens_seen)
    return math.exp((1 - part) * math.log(before.fvu) + part * math.log(after.fvu))
