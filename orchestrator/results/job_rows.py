"""Jobs as a person sees them: one query, flat rows, and why each job is not running."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Engine, Row, Select, case, func, select
from sqlalchemy.orm import Session

from orchestrator.database import models as m
from orchestrator.database.engine import db_now, reading
from orchestrator.job_states import JobKind
from orchestrator.queue.eligibility import Obstacle, obstacle, obstacle_flags, queue_order
from orchestrator.results.auto_values import measured_share, stored_window, trained_lr
from orchestrator.results.eta import expected_tokens
from orchestrator.results.rows import JobRow
from orchestrator.results.text_passes import trainable_tokens
from orchestrator.results.varied_keys import differences
from orchestrator.results.worker_rows import worker_stance
from orchestrator.settings import Settings

EPSILON = 0.01
_REASONS: dict[Obstacle, str] = {
    "queue paused": "QueuePaused",
    "sweep paused": "SweepPaused",
    "arriving": "Arriving",
    "backoff": "Backoff",
    "sweep cap": "SweepCap",
}
"""How people are told of an obstacle; of one that they asked for themselves the state tells."""
_IDS_PER_QUERY = 10_000
_WAITS = ("queued", "paused")
_OWN = ("id", "state", "desired", "priority", "attempt", "failures", "preemptions", "n_latents", "k", "seed")
_MORE = ("d_model", "max_tokens", "created_at", "finished_at", "config_id", "mlflow_run_id", "kind")
"""What a row has of its job as it is."""


class _QueueContext(NamedTuple):
    """What is read once for all jobs."""

    now: float
    sweeps: dict[int, Row[Any]]
    running: dict[int, int]
    """Running jobs by sweep."""
    no_worker: str
    """Why no worker would take a job; empty when one would, sooner or later."""


def jobs(
    engine: Engine,
    *,
    sweep: str | None = None,
    states: Collection[str] | None = None,
    ids: Collection[int] | None = None,
    limit: int | None = None,
    kind: JobKind | None = "train",
) -> list[JobRow]:
    """Return jobs by id, those that fit every condition given; with `limit` the first so many.

    Other jobs than trainings only who asks for them, by `kind`, has. None: jobs of every kind.

    The first are those with the lowest ids; among jobs of given states, and no given ids, those that run first.

    Raises:
        StorageError: the database did not answer.
    """
    wanted: list[ColumnElement[bool]] = [] if ids is not None else [m.Job.hidden.is_(None)]
    if kind is not None:
        wanted.append(m.Job.kind == kind)
    if sweep is not None:
        wanted.append(m.Job.sweep_id.in_(select(m.SweepRow.id).where(m.SweepRow.name == sweep)))
    if states is not None:
        wanted.append(m.Job.state.in_(states))
    with reading(engine) as session:
        if states is not None and limit is not None and ids is None:
            # In the claim's order, which its index has: by id, all jobs of the state would be sorted for a few of them.
            ids = session.scalars(select(m.Job.id).where(*wanted).order_by(*queue_order()).limit(limit)).all()
        context = _queue_context(session)
        rows = _rows(session, all_jobs().where(*wanted), ids, limit)
        ends = expected_tokens(session, [row.id for row in rows if row.state == "running"])
        swept = differences(session, {row.id: row.sweep_id for row in rows if row.kind == "train"})
        return [_job(row, context, ends.get(row.id), swept.get(row.id, {})) for row in rows]


def _rows(session: Session, query: Select[Any], ids: Collection[int] | None, limit: int | None) -> list[Row[Any]]:
    if ids is None:
        return list(session.execute(query.limit(limit)))
    wanted = sorted(set(ids))
    parts = (wanted[start : start + _IDS_PER_QUERY] for start in range(0, len(wanted), _IDS_PER_QUERY))
    rows = [row for part in parts for row in session.execute(query.where(m.Job.id.in_(part)))]
    return rows[:limit]


def _saved_tokens() -> ColumnElement[int | None]:
    job = m.Job
    saved = select(func.max(m.CheckpointRow.tokens_seen)).where(m.CheckpointRow.job_id == job.id).correlate(job)
    return case((job.state.in_(_WAITS), func.coalesce(saved.scalar_subquery(), 0)))


def _tokens_seen() -> ColumnElement[int]:
    # As `_job` says it.
    held = func.nullif(m.LeaseRow.tokens_seen, 0)
    return func.coalesce(m.ResultRow.tokens_seen, held, _saved_tokens(), m.CurvePoint.tokens_seen, _ended_at(), 0)


def _ended_at() -> ColumnElement[int | None]:
    """Return where the last attempt of a job ended that has no curve of its own kind."""
    return case((m.Job.kind == "lens", m.Attempt.tokens_end))


def _read(column: Any) -> Callable[[], ColumnElement[Any]]:
    return lambda: column


FIELDS_READ: dict[str, Callable[[], ColumnElement[Any]]] = {
    **{name: _read(getattr(m.Job, name)) for name in (*_OWN, *_MORE, "hidden")},
    **{name: _read(getattr(m.CurvePoint, name)) for name in ("fvu", "l0", "wall_seconds")},
    **{name: _read(getattr(m.ResultRow, name)) for name in ("outcome", "l_inf", "l_inf_se", "untrained_fvu")},
    "artifact_uri": _read(m.ResultRow.artifact_uri),
    **{name: _read(getattr(m.Attempt, name)) for name in ("worker", "started_at")},
    "tokens_to_convergence": _read(m.ConvergenceRow.tokens), "tokens_lower_bound": _read(m.ConvergenceRow.lower_bound),
    "tokens_low": _read(m.ConvergenceRow.low), "tokens_high": _read(m.ConvergenceRow.high),
    "lr": trained_lr, "tokens_seen": _tokens_seen, "trainable_tokens": trainable_tokens,
    "tokens_per_second": _read(m.LeaseRow.tokens_per_second), "age": lambda: -m.Job.created_at,
    "lease_left": _read(m.LeaseRow.expires_at),
}  # fmt: skip
"""The fields of a `JobRow` that one column says, or puts in the same order, on a query of `all_jobs`."""


def all_jobs() -> Select[Any]:
    """Select every job by id, with all that a `JobRow` is made of."""
    job, point = m.Job, m.CurvePoint
    newest = select(func.max(m.CurvePoint.tokens_seen)).where(m.CurvePoint.job_id == job.id).correlate(job)
    return (
        select(
            *(getattr(job, name) for name in _OWN + _MORE),
            trained_lr().label("lr"), job.sweep_id, job.not_before, job.reason.label("stored_reason"),
            _saved_tokens().label("saved_tokens"), _ended_at().label("ended_tokens"),
            job.asked_config, job.hidden, obstacle().label("obstacle"), trainable_tokens().label("trainable_tokens"),
            m.LeaseRow.tokens_seen.label("lease_tokens"), m.LeaseRow.tokens_per_second, m.LeaseRow.expires_at,
            point.tokens_seen.label("point_tokens"), point.fvu, point.dead_share, point.l0, point.wall_seconds,
            # Read where no latent is dead, to tell whether one could be: else the share is known to be measured.
            case((point.dead_share == 0, job.config)).label("config_if_none_dead"),
            m.ResultRow.tokens_seen.label("result_tokens"), m.ResultRow.outcome, m.ResultRow.l_inf,
            m.ResultRow.l_inf_se, m.ResultRow.untrained_fvu, m.ResultRow.artifact_uri,
            m.ConvergenceRow.tokens, m.ConvergenceRow.lower_bound, m.ConvergenceRow.low, m.ConvergenceRow.high,
            m.Attempt.worker, m.Attempt.started_at,
        )
        .outerjoin(m.Attempt, (m.Attempt.job_id == job.id) & (m.Attempt.attempt == job.attempt))
        .outerjoin(m.LeaseRow, m.LeaseRow.job_id == job.id)
        .outerjoin(point, (point.job_id == job.id) & (point.tokens_seen == newest.scalar_subquery()))
        .outerjoin(m.ResultRow, m.ResultRow.job_id == job.id)
        .outerjoin(m.ConvergenceRow, (m.ConvergenceRow.job_id == job.id) & (m.ConvergenceRow.epsilon == EPSILON))
        .order_by(job.id)
    )  # fmt: skip


def _queue_context(session: Session) -> _QueueContext:
    now = session.execute(select(db_now())).scalar_one()
    running = select(m.Job.sweep_id, func.count()).where(m.Job.state == "running").group_by(m.Job.sweep_id)
    columns = (m.SweepRow.id, m.SweepRow.name, m.SweepRow.labels, m.SweepRow.paused, m.SweepRow.max_parallel)
    sweeps = {row.id: row for row in session.execute(select(*columns))}
    at_work = {row[0]: row[1] for row in session.execute(running)}
    return _QueueContext(now, sweeps, at_work, _no_worker(session, now))


def _no_worker(session: Session, now: float) -> str:
    stance = worker_stance(session)
    if stance in ("leaving", "unwell"):
        return f"Workers{stance.capitalize()}"
    # A worker of an early version does not register, but its leases show it.
    held = select(m.LeaseRow.job_id).where(m.LeaseRow.expires_at >= now).limit(1)
    return "" if stance == "open" or session.scalar(held) is not None else "NoWorker"


def _job(row: Row[Any], context: _QueueContext, expected: int | None, swept: dict[str, Any]) -> JobRow:
    sweep = context.sweeps[row.sweep_id]
    # What waits goes on from its checkpoint. A lease says 0 until its trainer has loaded: till then the curve is right.
    seen = (row.result_tokens, row.lease_tokens or None, row.saved_tokens, row.point_tokens, row.ended_tokens, 0)
    return JobRow(
        id=row.id, sweep=sweep.name, state=row.state, desired=row.desired, priority=row.priority, attempt=row.attempt,
        failures=row.failures, preemptions=row.preemptions, n_latents=row.n_latents, k=row.k, lr=row.lr, seed=row.seed,
        d_model=row.d_model, max_tokens=row.max_tokens, tokens_seen=next(n for n in seen if n is not None),
        tokens_per_second=row.tokens_per_second, fvu=row.fvu, dead_share=_dead_share(row), l0=row.l0,
        outcome=row.outcome, tokens_to_convergence=row.tokens, tokens_lower_bound=row.lower_bound,
        tokens_low=row.low, tokens_high=row.high, l_inf=row.l_inf, l_inf_se=row.l_inf_se,
        untrained_fvu=row.untrained_fvu, wall_seconds=row.wall_seconds, created_at=row.created_at,
        started_at=row.started_at, finished_at=row.finished_at, age=context.now - row.created_at, worker=row.worker,
        lease_left=None if row.expires_at is None else row.expires_at - context.now, reason=_reason(row, context),
        config_id=row.config_id, mlflow_run_id=row.mlflow_run_id, artifact_uri=row.artifact_uri, labels=sweep.labels,
        asked_max_tokens=json.loads(row.asked_config)["training"]["max_tokens"] if row.asked_config else None,
        hidden=row.hidden, kind=row.kind, expected_tokens=expected, swept=swept, trainable_tokens=row.trainable_tokens,
        passes=row.max_tokens / row.trainable_tokens if row.trainable_tokens else None,
    )  # fmt: skip


def _dead_share(row: Row[Any]) -> float | None:
    config: str | None = row.config_if_none_dead
    window = None if config is None else stored_window(config, row.d_model)
    return measured_share(row.dead_share, row.point_tokens, window)


def _reason(row: Row[Any], context: _QueueContext) -> str | None:
    """Return why a job is not running, in a word of its own; or how a job that ended did."""
    stored: str | None = row.stored_reason
    if row.state == "running" or row.obstacle == "asked":
        return {"cancel": "Cancelling", "pause": "Pausing"}.get(row.desired)
    if row.state == "paused":
        return "Paused"
    if row.state != "queued":
        return stored
    if row.obstacle is None:
        return context.no_worker or "Priority"
    word = _REASONS[row.obstacle]
    if word == "Backoff":
        return f"{word}({span(row.not_before - context.now)})" + (f": {stored}" if stored else "")
    if word == "SweepCap":
        return f"{word}({context.running.get(row.sweep_id, 0)}/{context.sweeps[row.sweep_id].max_parallel})"
    return word


def located(settings: Settings, rows: Sequence[JobRow]) -> list[JobRow]:
    """Return jobs with the place where their SAEs are now: the folder may have moved since they were stored."""
    return [replace(row, artifact_uri=row.artifact_uri and settings.artifact(row.artifact_uri)) for row in rows]


def waiting_for(engine: Engine, job_id: int) -> list[str]:
    """Return the words of everything that keeps a queued or paused job from running, where `JobRow.reason` has one."""
    with reading(engine) as session:
        now = session.execute(select(db_now())).scalar_one()
        flags = session.execute(obstacle_flags(job_id)).mappings().one()
        words = [word for obstacle, word in _REASONS.items() if flags[obstacle]]
        no_worker = _no_worker(session, now)
    return [*words, no_worker] if no_worker else words


def span(seconds: float) -> str:
    """Return a span of time in its largest fitting unit, such as `4m`."""
    whole = max(1, round(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if whole >= size:
            return f"{whole / size:.0f}{unit}"
    return f"{whole}s"
