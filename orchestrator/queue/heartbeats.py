"""While a job runs: renew the lease, store facts, curve points and checkpoints. Every write is fenced."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Engine, case, delete, select, update
from sqlalchemy.orm import Session

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.curves.lens_curve import LensPoint
from orchestrator.curves.point import Point
from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import (
    Attempt,
    CheckpointRow,
    CurvePoint,
    Job,
    LeaseRow,
    LensPointRow,
    SweepRow,
    Table,
)
from orchestrator.job_states import JobKind
from orchestrator.queue.fencing import dialect_insert, held_by, hold, log_event, lost
from orchestrator.queue.types import Desired, Lease


def heartbeat(
    engine: Engine,
    lease: Lease,
    *,
    lease_seconds: float,
    tokens_seen: int | None = None,
    tokens_per_second: float | None = None,
) -> Desired:
    """Renew a lease and return the desired state of the job.

    Raises:
        LeaseLost: this worker has been given up.
    """
    now = db_now()
    news: dict[str, Any] = {"tokens_per_second": tokens_per_second}
    if tokens_seen is not None:
        moved = case((LeaseRow.tokens_seen != tokens_seen, now), else_=LeaseRow.progress_at)
        news |= {"tokens_seen": tokens_seen, "progress_at": moved}
    values = {name: value for name, value in news.items() if value is not None}
    with transaction(engine) as session:
        renewal = update(LeaseRow).where(held_by(lease)).values(expires_at=now + lease_seconds, **values)
        if session.scalar(renewal.returning(LeaseRow.job_id)) is None:
            raise lost(lease)
        return cast(Desired, session.scalar(select(Job.desired).where(Job.id == lease.job_id)))


def begin(
    engine: Engine, lease: Lease, facts: Mapping[str, Any], tokens_start: int, *, kind: JobKind = "train"
) -> None:
    """Record what the trainer resolved, and delete curve points and checkpoints beyond the tokens it starts from.

    Sizes that the config left to the subject go to the job's row. A learning rate does not: what was asked for stays
    there, and what `auto` came to is a fact of the attempt.

    Raises:
        LeaseLost: this worker has been given up.
    """
    with transaction(engine) as session:
        hold(session, lease)
        session.execute(update(LeaseRow).where(held_by(lease)).values(tokens_seen=tokens_start, progress_at=db_now()))
        mine = (Attempt.job_id == lease.job_id, Attempt.attempt == lease.attempt)
        session.execute(update(Attempt).where(*mine).values(facts=dict(facts), tokens_start=tokens_start))
        sizes = {name: facts[name] for name in ("n_latents", "d_model") if facts.get(name) is not None}
        if sizes:
            session.execute(update(Job).where(Job.id == lease.job_id).values(**sizes))
        curve = LensPointRow if kind == "lens" else CurvePoint
        points, newer = (
            delete(table).where(table.job_id == lease.job_id, table.tokens_seen > tokens_start)
            for table in (curve, CheckpointRow)
        )
        session.execute(points)
        if unreadable := session.scalars(newer.returning(CheckpointRow.tokens_seen)).all():
            log_event(session, "checkpoints_passed_over", lease, tokens_seen=sorted(unreadable))
        log_event(session, "started", lease, tokens_start=tokens_start)


def record(engine: Engine, lease: Lease, points: Sequence[Point | LensPoint]) -> None:
    """Store curve points; the same point twice is stored once.

    Raises:
        LeaseLost: this worker has been given up.
    """
    if not points:
        return
    last = points[-1]
    with transaction(engine) as session:
        hold(session, lease)
        news = {"tokens_seen": last.tokens_seen, "progress_at": db_now()}
        session.execute(update(LeaseRow).where(held_by(lease)).values(**news))
        mine = {"job_id": lease.job_id, "attempt": lease.attempt}
        of_lens = [mine | vars(point) for point in points if isinstance(point, LensPoint)]
        of_sae = [mine | point._asdict() for point in points if isinstance(point, Point)]
        for table, rows in ((LensPointRow, of_lens), (CurvePoint, of_sae)):
            if rows:
                _upsert(session, table, rows)


def checkpointed(engine: Engine, lease: Lease, ref: CheckpointRef) -> None:
    """Store the pointer to a finished checkpoint; the count of lost attempts in a row starts anew.

    Raises:
        LeaseLost: this worker has been given up; nothing points to the file.
    """
    with transaction(engine) as session:
        hold(session, lease)
        where = {"job_id": lease.job_id, "attempt": lease.attempt, "tokens_seen": ref.tokens_seen}
        _upsert(session, CheckpointRow, [where | {"uri": ref.uri, "sha256": ref.sha256, "created_at": db_now()}])
        # The last one of an attempt comes after its last heartbeat, and the attempt ends where the lease says.
        behind = update(LeaseRow).where(held_by(lease), LeaseRow.tokens_seen < ref.tokens_seen)
        session.execute(behind.values(tokens_seen=ref.tokens_seen, progress_at=db_now()))
        session.execute(update(Job).where(Job.id == lease.job_id, Job.lost_in_row > 0).values(lost_in_row=0))
        log_event(session, "checkpoint", lease, tokens_seen=ref.tokens_seen)


def set_mlflow(
    engine: Engine,
    *,
    mlflow_id: str,
    sweep_id: int | None = None,
    job_id: int | None = None,
    attempt: int | None = None,
) -> None:
    """Note MLflow's id of a sweep's experiment, of a job's run, or (job and attempt given) of an attempt's run."""
    with transaction(engine) as session:
        if sweep_id is not None:
            session.execute(update(SweepRow).where(SweepRow.id == sweep_id).values(mlflow_experiment_id=mlflow_id))
        elif attempt is None:
            session.execute(update(Job).where(Job.id == job_id).values(mlflow_run_id=mlflow_id))
        else:
            mine = (Attempt.job_id == job_id, Attempt.attempt == attempt)
            session.execute(update(Attempt).where(*mine).values(mlflow_run_id=mlflow_id))


def _upsert(session: Session, table: type[Table], rows: list[dict[str, Any]]) -> None:
    keys = [column.name for column in table.__table__.primary_key]
    insertion = dialect_insert(session, table).values(rows)
    fresh = {name: insertion.excluded[name] for name in rows[0] if name not in keys}
    session.execute(insertion.on_conflict_do_update(index_elements=keys, set_=fresh))
