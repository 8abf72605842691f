"""Leases that ran out: the job is queued again, paused or cancelled as was asked, or failed after too many losses."""

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Job, LeaseRow
from orchestrator.job_states import State
from orchestrator.queue.fencing import MAX_LOST_IN_ROW, backoff, close_attempt, log_event, move
from orchestrator.queue.types import Lease


def release_expired(engine: Engine, *, grace_seconds: float, backoff_seconds: float = 30.0) -> list[int]:
    """Delete every lease that ran out more than the grace ago; return the jobs concerned.

    Any process may run this at any time, also several at once.
    """
    expired = select(LeaseRow.job_id).where(LeaseRow.expires_at < db_now() - grace_seconds)
    with reading(engine) as session:  # most calls find nothing, and must not take the write lock for that
        due = session.scalars(expired.order_by(LeaseRow.job_id)).all()
    return [job_id for job_id in due if _expire(engine, job_id, grace_seconds, backoff_seconds)]


def _expire(engine: Engine, job_id: int, grace_seconds: float, backoff_seconds: float) -> bool:
    # The condition again, on the locked row: the worker may have renewed the lease since.
    still = select(LeaseRow.attempt, LeaseRow.token).where(
        LeaseRow.job_id == job_id, LeaseRow.expires_at < db_now() - grace_seconds
    )
    with transaction(engine) as session:
        row = session.execute(still.with_for_update(skip_locked=True)).one_or_none()
        if row is None:
            return False
        lease = Lease(job_id, row.attempt, row.token)
        close_attempt(session, lease, outcome="lost", error="the worker fell silent")
        _put_back(session, lease, backoff_seconds)
    return True


def _put_back(session: Session, lease: Lease, backoff_seconds: float) -> None:
    query = select(Job.desired, Job.lost_in_row).where(Job.id == lease.job_id).with_for_update()
    desired, before = session.execute(query).one()
    in_row = before + 1
    state: State = "queued"
    why: str | None = "the worker fell silent"
    if desired == "cancel":
        state, why = "cancelled", None
    elif in_row >= MAX_LOST_IN_ROW:
        state, why = "failed", f"{in_row} attempts in a row lost their worker without progress"
    elif desired == "pause":
        state, why = "paused", None
    # The first loss is rarely the job's fault: it may run again at once.
    pause = backoff(in_row - 2, backoff_seconds) if in_row > 1 else 0.0
    until = db_now() + pause if pause else 0.0
    move(session, lease, state, lost_in_row=in_row, reason=why, not_before=until)
    log_event(session, state, lease, outcome="lost")
