"""Figures of the whole queue: what waits, what runs, and what the attempts that ended came to."""

from typing import Any

from sqlalchemy import ColumnElement, Engine, case, func, select
from sqlalchemy.orm import Session

from orchestrator.database import models as m
from orchestrator.database.engine import db_now, reading
from orchestrator.results.shapes import QueueStats

HOUR = 3600.0
KINDS = ("results", "failures", "preemptions", "lost", "other")
_KIND_OF = {
    "converged": "results", "max_tokens": "results", "diverged": "results",
    "preempted": "preemptions", "lost": "lost", "paused": "other", "cancelled": "other",
}  # fmt: skip
"""Every other outcome of an attempt is a failure."""


def stats(engine: Engine) -> QueueStats:
    """Return the figures of the whole queue.

    Raises:
        StorageError: the database did not answer.
    """
    with reading(engine) as session:
        counts = _count(session, _by(m.Job.state))
        ended, hour = _ended(session), _ended(session, m.Attempt.ended_at > db_now() - HOUR)
        leases = m.LeaseRow
        holds = session.execute(
            select(
                func.sum(leases.tokens_per_second).filter(leases.expires_at >= db_now()),
                func.min(leases.expires_at) - db_now(),
            )
        ).one()
        return QueueStats(
            jobs={state: counts.get(state, 0) for state in m.STATES},
            paused_at=session.scalar(select(m.QueuePause.since)),
            oldest_queued_age=_oldest(session),
            running=_running(session),
            tokens_per_second=holds[0] or 0.0,
            lease_slack=holds[1],
            tokens_trained=ended.pop("tokens") + _in_training(session),
            attempts=ended,
            last_hour=hour,
        )


def _by(column: Any) -> Any:
    return select(column, func.count()).group_by(column)


def _count(session: Session, query: Any) -> dict[str, int]:
    return {row[0]: row[1] for row in session.execute(query)}


def _oldest(session: Session) -> float | None:
    first = select(func.min(m.Job.id)).where(m.Job.state == "queued").scalar_subquery()
    return session.scalar(select(db_now() - m.Job.created_at).where(m.Job.id == first))


def _running(session: Session) -> dict[str, int]:
    mine = (m.Attempt.job_id == m.LeaseRow.job_id) & (m.Attempt.attempt == m.LeaseRow.attempt)
    query = _by(m.Attempt.device).select_from(m.LeaseRow).join(m.Attempt, mine).order_by(m.Attempt.device)
    return _count(session, query)


def _ended(session: Session, *which: ColumnElement[bool]) -> dict[str, int]:
    """Return the attempts that ended by kind, and the tokens they trained; an index has all of it."""
    attempt = m.Attempt
    trained = func.sum(attempt.tokens_end - attempt.tokens_start)
    query = select(attempt.outcome, func.count(), trained).where(attempt.ended_at.is_not(None), *which)
    found = dict.fromkeys((*KINDS, "tokens"), 0)
    for outcome, number, tokens in session.execute(query.group_by(attempt.outcome)):
        found[_KIND_OF.get(outcome or "", "failures")] += number
        found["tokens"] += int(tokens or 0)
    return found


def _in_training(session: Session) -> int:
    """Return the tokens that the running attempts have trained so far."""
    lease, attempt = m.LeaseRow, m.Attempt
    mine = (attempt.job_id == lease.job_id) & (attempt.attempt == lease.attempt)
    begun = case((attempt.tokens_start.is_(None), 0), else_=lease.tokens_seen - attempt.tokens_start)
    return int(session.scalar(select(func.sum(begun)).select_from(lease).join(attempt, mine)) or 0)
