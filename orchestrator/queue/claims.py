"""A worker takes a job: one short transaction that leaves job, lease and attempt row consistent."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Engine, Row, Select, func, insert, select, update
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Attempt, CheckpointRow, Job, LeaseRow, SweepRow
from orchestrator.queue.endings import fail
from orchestrator.queue.fence import log_event
from orchestrator.queue.gate import enter, is_open, read_in_order
from orchestrator.queue.terms import CheckpointRef, Claim, Lease, Worker

if TYPE_CHECKING:
    from orchestrator.config import JobConfig

Query = Select[int, int, int, str]
_MOST_PASSED_OVER = 32
"""Companions that do not fit, before the look for one that does ends."""
_TAKEN = select(
    Job.config, Job.failures, Job.lost_in_row, Job.stream_key, Job.mlflow_run_id,
    Job.sweep_id, SweepRow.name, SweepRow.mlflow_experiment_id,
).join(SweepRow, SweepRow.id == Job.sweep_id)  # fmt: skip


def claim(engine: Engine, worker: Worker, *, token: str, lease_seconds: float) -> Claim | None:
    """Take the next job that may run, or None when there is none.

    The token is made by the caller before the call. When the answer of a commit was lost, calling again with the same
    token adopts the claim that was made.

    Raises:
        StorageError: the database did not answer; call again with the same token.
    """
    return _claim(engine, worker, token, lease_seconds, _anyone())


def claim_companion(
    engine: Engine,
    worker: Worker,
    *,
    leader: Claim,
    token: str,
    lease_seconds: float,
    fits: Callable[["JobConfig"], bool] = lambda _: True,
) -> Claim | None:
    """Take the next job that may run in the trainer of `leader`, or None; tokens as in `claim`.

    It reads the same stream from the same place, and has not failed: what may be poison is trained alone. `fits` is
    asked within the transaction, and must answer at once.

    Raises:
        StorageError: the database did not answer; call again with the same token.
    """
    return _claim(engine, worker, token, lease_seconds, _companions(leader, fits))


class _Choice(NamedTuple):
    """Among which jobs, and what else is asked of the one that is taken."""

    query: Query
    fits: Callable[["JobConfig"], bool] | None = None


class _Unreadable(NamedTuple):
    """A claim whose config was stored by another version: no attempt can run it."""

    lease: Lease
    told: str


def _anyone() -> _Choice:
    return _Choice(_eligible())


def _companions(leader: Claim, fits: Callable[["JobConfig"], bool]) -> _Choice:
    cursor = select(func.max(CheckpointRow.tokens_seen)).where(CheckpointRow.job_id == Job.id).scalar_subquery()
    same = Job.stream_key.is_not(None) & (Job.stream_key == leader.stream_key)
    alike = (same, Job.failures == 0, Job.lost_in_row == 0)
    return _Choice(_eligible().where(*alike, func.coalesce(cursor, 0) == leader.cursor), fits)


def _claim(engine: Engine, worker: Worker, token: str, lease_seconds: float, choice: _Choice) -> Claim | None:
    while True:
        taken = _take(engine, worker, token, lease_seconds, choice)
        if not isinstance(taken, _Unreadable):
            return taken
        fail(engine, taken.lease, error=taken.told, exit_code=78, outcome="config", retry=False)


def _take(
    engine: Engine, worker: Worker, token: str, lease_seconds: float, choice: _Choice
) -> Claim | _Unreadable | None:
    with transaction(engine) as session:
        lease = _adopted(session, token) or _next(session, worker, token, lease_seconds, choice)
        if lease is None:
            return None
        job = session.execute(_TAKEN.where(Job.id == lease.job_id)).one()
        rows = session.execute(_checkpoints(lease.job_id))
        refs = tuple(CheckpointRef(row.uri, row.tokens_seen, row.sha256) for row in rows)
    stream_key = None if job.failures or job.lost_in_row else job.stream_key
    try:
        config = _read(job.config)
    except ValueError as error:
        return _Unreadable(lease, f"the stored config is not valid here: {error}")
    runs = job.mlflow_run_id, job.mlflow_experiment_id
    return Claim(lease, config, job.sweep_id, job.name, refs, *runs, stream_key)


def waiting(engine: Engine, *, limit: int) -> list[int]:
    """Return the first jobs that may run now, in the order in which they will."""
    with reading(engine) as session:
        read_in_order(session)
        return [*session.scalars(_eligible().with_only_columns(Job.id).limit(limit))]


def _read(stored: str) -> "JobConfig":
    from orchestrator.config import JobConfig

    return JobConfig.model_validate_json(stored)


def _adopted(session: Session, token: str) -> Lease | None:
    row = session.execute(select(LeaseRow.job_id, LeaseRow.attempt).where(LeaseRow.token == token)).one_or_none()
    return Lease(row.job_id, row.attempt, token) if row else None


def _next(session: Session, worker: Worker, token: str, lease_seconds: float, choice: _Choice) -> Lease | None:
    job = _pick(session, choice)
    if job is None:
        return None
    taken = update(Job).where(Job.id == job.id, Job.attempt == job.attempt, Job.state == "queued")
    attempt = session.scalar(taken.values(state="running", attempt=Job.attempt + 1, reason=None).returning(Job.attempt))
    if attempt is None:
        return None
    lease = Lease(job.id, attempt, token)
    held = {"job_id": job.id, "attempt": attempt, "token": token}
    now = db_now()
    until = {"expires_at": now + lease_seconds, "progress_at": now, "tokens_seen": _resumable(session, job.id)}
    session.execute(insert(LeaseRow).values(**held, **until))
    who = {"worker": worker.name, "host": worker.host, "pid": worker.pid, "device": worker.device}
    session.execute(insert(Attempt).values(**held, **who, started_at=now))
    log_event(session, "claimed", lease, worker=worker.name)
    return lease


def _pick(session: Session, choice: _Choice) -> Row[int, int, int, str] | None:
    """Lock the first job that may be taken, highest priority first, then the oldest."""
    enter(session)
    full: list[int] = []
    passed: list[int] = []
    query = choice.query.with_for_update(skip_locked=True, of=Job).limit(1)
    while len(passed) < _MOST_PASSED_OVER:
        job = session.execute(query.where(Job.sweep_id.not_in(full), Job.id.not_in(passed))).one_or_none()
        if job is None:
            return None
        if job.sweep_id in _capped(session, job.sweep_id) and _is_full(session, job.sweep_id):
            full.append(job.sweep_id)
        elif choice.fits is None or _suits(job.config, choice.fits):
            return job
        else:
            passed.append(job.id)
    return None


def _suits(stored: str, fits: Callable[["JobConfig"], bool]) -> bool:
    try:
        return fits(_read(stored))
    except ValueError:  # whoever takes it for itself will say so
        return False


@cache
def _eligible() -> Query:
    """Select the jobs that may run now, in the order in which they will.

    Paused and full sweeps are left out as one uncorrelated list, so that the index gives the order and a long
    queue of a paused sweep costs no look-up per job.
    """
    running = select(func.count()).select_from(Job).where(Job.sweep_id == SweepRow.id, Job.state == "running")
    closed = select(SweepRow.id).where(SweepRow.paused | (SweepRow.max_parallel <= running.scalar_subquery()))
    return (
        select(Job.id, Job.attempt, Job.sweep_id, Job.config)
        .where(Job.state == "queued", Job.desired == "run", Job.not_before <= db_now(), Job.sweep_id.not_in(closed))
        .where(is_open())
        .order_by(Job.priority.desc(), Job.id)
    )


def _capped(session: Session, sweep_id: int) -> list[int]:
    """Lock the sweep if it has a cap: two claims at once must not both take its last place."""
    lock = select(SweepRow.id).where(SweepRow.id == sweep_id, SweepRow.max_parallel.is_not(None))
    return list(session.scalars(lock.with_for_update(key_share=True)))


def _is_full(session: Session, sweep_id: int) -> bool:
    running = select(func.count()).select_from(Job).where(Job.sweep_id == sweep_id, Job.state == "running")
    full = select(SweepRow.id).where(SweepRow.id == sweep_id, SweepRow.max_parallel <= running.scalar_subquery())
    return session.scalar(full) is not None


def _resumable(session: Session, job_id: int) -> int:
    return session.scalar(select(func.max(CheckpointRow.tokens_seen)).where(CheckpointRow.job_id == job_id)) or 0


def _checkpoints(job_id: int) -> Select[str, int, str]:
    newest = (CheckpointRow.tokens_seen.desc(), CheckpointRow.attempt.desc())
    columns = select(CheckpointRow.uri, CheckpointRow.tokens_seen, CheckpointRow.sha256)
    return columns.where(CheckpointRow.job_id == job_id).order_by(*newest)
