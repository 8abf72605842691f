"""Fencing: every write of a worker is conditional on job, attempt and token; and the events of every transition."""

import importlib
import random
from collections.abc import Iterable
from functools import cache
from typing import Any, cast

from sqlalchemy import ColumnElement, and_, bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now
from orchestrator.database.models import Attempt, Event, Job, LeaseRow, Table
from orchestrator.job_states import TERMINAL, State
from orchestrator.masking import mask
from orchestrator.queue.types import Lease, LeaseLost

MAX_PREEMPTIONS = 50
MAX_LOST_IN_ROW = 3
MAX_BACKOFF_SECONDS = 3600.0


def clock(session: Session) -> float:
    """Return the database's time now, in epoch seconds."""
    return float(session.execute(select(db_now())).scalar_one())


def dialect_insert(session: Session, table: type[Table]) -> Any:
    """Return an insert that knows ON CONFLICT; of the one dialect in use, for each is slow to load."""
    name = session.get_bind().dialect.name
    return importlib.import_module(f"sqlalchemy.dialects.{name}").insert(table)


def held_by(lease: Lease) -> ColumnElement[bool]:
    """Return the condition that a lease row is this lease's: job, attempt and token."""
    same = (LeaseRow.job_id == lease.job_id, LeaseRow.attempt == lease.attempt, LeaseRow.token == lease.token)
    return and_(*same)


def hold(session: Session, lease: Lease) -> LeaseRow:
    """Lock the lease for the rest of this transaction, so that it cannot expire under the write.

    Raises:
        LeaseLost: it has expired, or another attempt holds the job.
    """
    row = session.scalar(select(LeaseRow).where(held_by(lease)).with_for_update())
    if row is None:
        raise lost(lease)
    return row


def lost(lease: Lease) -> LeaseLost:
    """Return the error of a worker that has been given up."""
    return LeaseLost(
        f"job {lease.job_id}: attempt {lease.attempt} no longer holds the lease",
        hint="Another attempt may own the job by now; this one must stop and write nothing.",
    )


def close_attempt(session: Session, lease: Lease, **values: Any) -> int | None:
    """Delete the lease and close its attempt; return the tokens it had seen, or None if it was not held."""
    seen: int | None = session.scalar(delete(LeaseRow).where(held_by(lease)).returning(LeaseRow.tokens_seen))
    if seen is None:
        return None
    session.execute(
        update(Attempt)
        .where(Attempt.job_id == lease.job_id, Attempt.attempt == lease.attempt)
        .values(ended_at=db_now(), tokens_end=seen, **values)
    )
    return seen


def move(session: Session, lease: Lease, state: State, **values: Any) -> None:
    """Take a running job to another state; the attempt must still be its newest."""
    done = session.scalar(
        update(Job)
        .where(Job.id == lease.job_id, Job.attempt == lease.attempt, Job.state == "running")
        .values(state=state, desired="run", finished_at=db_now() if state in TERMINAL else None, **values)
        .returning(Job.id)
    )
    if done is None:
        raise lost(lease)


def state_after(session: Session, lease: Lease, *outcomes: str) -> State:
    """Answer a call whose first commit went through: the attempt was closed by this token with one of these outcomes.

    Raises:
        LeaseLost: it was not.
    """
    mine = (Attempt.job_id == lease.job_id, Attempt.attempt == lease.attempt, Attempt.token == lease.token)
    ended = session.scalar(select(Attempt.outcome).where(*mine, Attempt.ended_at.is_not(None)))
    if ended not in outcomes:
        raise lost(lease)
    return cast(State, session.scalar(select(Job.state).where(Job.id == lease.job_id)))


def landing(desired: str, otherwise: State) -> State:
    """Return the state that a job comes to, by what is asked of it."""
    if desired == "cancel":
        return "cancelled"
    return "paused" if desired == "pause" and otherwise == "queued" else otherwise


def storable(text: str) -> str:
    """Mask a text, and replace what a database refuses: the last output of a crashed process may hold any bytes."""
    return mask(text).encode(errors="replace").decode().replace("\0", "?")


def log_event(session: Session, kind: str, lease: Lease, **data: Any) -> None:
    """Append one event of an attempt."""
    values = {"job_id": lease.job_id, "attempt": lease.attempt, "kind": kind, "data": data or None}
    session.connection().execute(_logging(), values)


@cache
def _logging() -> Any:
    names = ("job_id", "attempt", "kind", "data")
    return insert(Event).values(**{name: bindparam(name) for name in names}, at=db_now())


def log_events(session: Session, kind: str, job_ids: Iterable[int], **data: Any) -> None:
    """Append one event to each job."""
    now = clock(session)
    rows = [{"job_id": job_id, "at": now, "kind": kind, "data": data or None} for job_id in job_ids]
    if rows:
        session.execute(insert(Event), rows)


def backoff(earlier: int, seconds: float) -> float:
    """Return a delay with full jitter: uniform up to min(3600, seconds · 2^earlier)."""
    return random.uniform(0.0, min(MAX_BACKOFF_SECONDS, seconds * 2.0 ** min(earlier, 30)))
