"""All that is stored about one job: its curve, attempts, events, checkpoints, counts and config."""

import json
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, func, select

from orchestrator.curves.point import Point, stored_point
from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.errors import NotFound
from orchestrator.results.auto_values import measured_share, stored_window
from orchestrator.results.rows import AttemptRow, CheckpointRow, ConvergenceRow, EventRow

_IDS_PER_QUERY = 10_000
_DEAD_SHARE = Point._fields.index("dead_share")
"""Where a point has it; its layers are last."""


def curve(engine: Engine, job_id: int) -> list[Point]:
    """Return a job's curve by tokens; what was not finite, or not measured, is nan."""
    return curves(engine, [job_id])[job_id]


def curves(engine: Engine, job_ids: Sequence[int]) -> dict[int, list[Point]]:
    """Return the curve of each job, as `curve`; of a job that has none an empty one."""
    columns = [getattr(m.CurvePoint, name) for name in Point._fields]
    query = select(m.CurvePoint.job_id, *columns).order_by(m.CurvePoint.job_id, m.CurvePoint.tokens_seen)
    stored = select(m.Job.id, m.Job.config, m.Job.d_model)
    found: dict[int, list[Point]] = {job_id: [] for job_id in job_ids}
    parts = [list(found)[start : start + _IDS_PER_QUERY] for start in range(0, len(found), _IDS_PER_QUERY)]
    with reading(engine) as session:
        for part in parts:
            for job_id, *values in session.execute(query.where(m.CurvePoint.job_id.in_(part))):
                found[job_id].append(stored_point(values))
        told = [row for part in parts for row in session.execute(stored.where(m.Job.id.in_(part)))]
    windows = {row.id: stored_window(row.config, row.d_model) for row in told if found[row.id]}
    return {job_id: measured_points(points, windows.get(job_id)) for job_id, points in found.items()}


def measured_points(points: Sequence[Point], window: int | None) -> list[Point]:
    """Return the points with a share of dead latents only where one could be dead, nan before; the window in tokens."""
    shares = [measured_share(point.dead_share, point.tokens_seen, window) for point in points]
    pairs = zip(points, shares, strict=True)
    return [_without_dead_share(point) if share is None else point for point, share in pairs]


def _without_dead_share(point: Point) -> Point:
    layers = point.by_layer and tuple(one._replace(dead_share=None) for one in point.by_layer)
    return Point._make((*point[:_DEAD_SHARE], math.nan, *point[_DEAD_SHARE + 1 : -1], layers))


def attempts(engine: Engine, job_id: int) -> list[AttemptRow]:
    """Return a job's attempts, first to last."""
    columns = [getattr(m.Attempt, name) for name in AttemptRow.__slots__]
    query = select(*columns).where(m.Attempt.job_id == job_id).order_by(m.Attempt.attempt)
    with reading(engine) as session:
        return [AttemptRow(*row) for row in session.execute(query)]


def events(engine: Engine, job_id: int) -> list[EventRow]:
    """Return what happened to a job, in order."""
    columns = [getattr(m.Event, name) for name in EventRow.__slots__]
    query = select(*columns).where(m.Event.job_id == job_id).order_by(m.Event.id)
    with reading(engine) as session:
        return [EventRow(*row) for row in session.execute(query)]


def checkpoints(engine: Engine, job_id: int) -> list[CheckpointRow]:
    """Return a job's checkpoints, newest first."""
    columns = [getattr(m.CheckpointRow, name) for name in CheckpointRow.__slots__]
    newest = (m.CheckpointRow.tokens_seen.desc(), m.CheckpointRow.attempt.desc())
    query = select(*columns).where(m.CheckpointRow.job_id == job_id).order_by(*newest)
    with reading(engine) as session:
        return [CheckpointRow(*row) for row in session.execute(query)]


def convergence(engine: Engine, job_id: int) -> list[ConvergenceRow]:
    """Return a job's tokens_to_convergence, by epsilon."""
    columns = [getattr(m.ConvergenceRow, name) for name in ConvergenceRow.__slots__]
    query = select(*columns).where(m.ConvergenceRow.job_id == job_id).order_by(m.ConvergenceRow.epsilon)
    with reading(engine) as session:
        return [ConvergenceRow(*row) for row in session.execute(query)]


def config(engine: Engine, job_id: int, *, asked: bool = False) -> dict[str, Any]:
    """Return a job's stored config; `asked`: as it was enqueued, before `orch extend` gave it another budget.

    Raises:
        NotFound: there is no such job.
    """
    with reading(engine) as session:
        first = func.coalesce(m.Job.asked_config, m.Job.config)
        text = session.scalar(select(first if asked else m.Job.config).where(m.Job.id == job_id))
    if text is None:
        raise NotFound(f"there is no job {job_id}", hint="orch status lists them")
    stored: dict[str, Any] = json.loads(text)
    return stored
