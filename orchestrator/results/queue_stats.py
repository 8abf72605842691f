"""Figures of the whole queue: what waits, what runs, and what the attempts that ended came to."""

from collections import Counter
from typing import Any

from sqlalchemy import ColumnElement, Engine, case, func, select
from sqlalchemy.orm import Session

from orchestrator.database import models as m
from orchestrator.database.engine import db_now, reading
from orchestrator.job_states import STATES, JobKind
from orchestrator.results.rows import QueueStats, SweepRow, WorkerRow

HOUR = 3600.0
_IS_HIDDEN = m.Job.hidden.in_(("hidden", "deleted"))
"""Named one by one: only so does SQLite look them up in their index."""
_ARE_OTHERS = (m.EVALUATION, m.Job.kind.in_(("evaluate", "lens")), m.Job.hidden.is_(None))
"""The jobs that are shown and train no SAE: the first condition, which the second implies, lets SQLite see their index,
and the second, which names the kinds one by one, look them up there."""
KINDS = ("results", "evaluations", "lenses", "failures", "preemptions", "lost", "machine", "other")
_KIND_OF = {
    "converged": "results", "max_tokens": "results", "not_learning": "results", "diverged": "results",
    "evaluated": "evaluations",
    "preempted": "preemptions", "lost": "lost", "machine": "machine", "paused": "other", "cancelled": "other",
}  # fmt: skip
"""Every other outcome of an attempt is a failure."""


def stats(engine: Engine) -> QueueStats:
    """Return the figures of the whole queue.

    Raises:
        StorageError: the database did not answer.
    """
    with reading(engine) as session:
        counts, evaluations = _count_shown(session), _count_others(session, "evaluate")
        lenses = _count_others(session, "lens")
        ended, hour = _ended(session), _ended(session, m.Attempt.ended_at > db_now() - HOUR)
        leases = m.LeaseRow
        holds = session.execute(
            select(
                func.sum(leases.tokens_per_second).filter(leases.expires_at >= db_now(), m.Job.kind == "train"),
                func.min(leases.expires_at) - db_now(),
            ).join(m.Job, m.Job.id == leases.job_id)
        ).one()
        return QueueStats(
            jobs={state: counts.get(state, 0) for state in STATES},
            evaluations={state: evaluations.get(state, 0) for state in STATES},
            lenses={state: lenses.get(state, 0) for state in STATES},
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


def _count_shown(session: Session, *which: ColumnElement[bool]) -> dict[str, int]:
    """Return the training jobs by state, less the hidden ones: all jobs less the others, of which indexes have each."""
    there = _count(session, _by(m.Job.state).where(*which))
    hidden = Counter(session.scalars(select(m.Job.state).where(_IS_HIDDEN, *which)))
    others = _count(session, _by(m.Job.state).where(*_ARE_OTHERS, *which))
    return {state: number - hidden[state] - others.get(state, 0) for state, number in there.items()}


def _count_others(session: Session, kind: JobKind, *which: ColumnElement[bool]) -> dict[str, int]:
    """Return the jobs of another kind than trainings by state, less the hidden ones."""
    return _count(session, _by(m.Job.state).where(*_ARE_OTHERS, m.Job.kind == kind, *which))


def _oldest(session: Session) -> float | None:
    first = select(func.min(m.Job.id)).where(m.Job.state == "queued").scalar_subquery()
    return session.scalar(select(db_now() - m.Job.created_at).where(m.Job.id == first))


def _running(session: Session) -> dict[str, int]:
    mine = (m.Attempt.job_id == m.LeaseRow.job_id) & (m.Attempt.attempt == m.LeaseRow.attempt)
    query = _by(m.Attempt.device).select_from(m.LeaseRow).join(m.Attempt, mine).order_by(m.Attempt.device)
    return _count(session, query)


def _ended(session: Session, *which: ColumnElement[bool]) -> dict[str, int]:
    """Return the attempts that ended by kind, and the tokens that SAEs were trained on; an index has all of it.

    A lens that was trained has the outcomes of an SAE: those of lens jobs, which are few, are taken out again.
    """
    attempt = m.Attempt
    trained = func.sum(attempt.tokens_end - attempt.tokens_start)
    ended = select(attempt.outcome, func.count(), trained).where(attempt.ended_at.is_not(None), *which)
    of_lenses = ended.join_from(m.Job, attempt, attempt.job_id == m.Job.id).where(m.EVALUATION, m.Job.kind == "lens")
    found = dict.fromkeys((*KINDS, "tokens"), 0)
    for outcome, number, tokens in session.execute(ended.group_by(attempt.outcome)):
        found[_KIND_OF.get(outcome or "", "failures")] += number
        found["tokens"] += int(tokens or 0)
    for outcome, number, tokens in session.execute(of_lenses.group_by(attempt.outcome)):
        found["tokens"] -= int(tokens or 0)
        if _KIND_OF.get(outcome or "") == "results":
            found["results"] -= number
            found["lenses"] += number
    return found


def _in_training(session: Session) -> int:
    """Return the tokens that the running attempts have trained SAEs on so far."""
    lease, attempt = m.LeaseRow, m.Attempt
    mine = (attempt.job_id == lease.job_id) & (attempt.attempt == lease.attempt)
    begun = case((attempt.tokens_start.is_(None), 0), else_=lease.tokens_seen - attempt.tokens_start)
    query = select(func.sum(begun)).select_from(lease).join(attempt, mine).join(m.Job, m.Job.id == lease.job_id)
    return int(session.scalar(query.where(m.Job.kind == "train")) or 0)


def counts(engine: Engine, *, sweep: str | None = None, kind: JobKind = "train") -> dict[str, int]:
    """Return the number of jobs of a kind in every state, of one sweep or of all."""
    with reading(engine) as session:
        named = None if sweep is None else select(m.SweepRow.id).where(m.SweepRow.name == sweep).scalar_subquery()
        which = () if named is None else (m.Job.sweep_id == named,)
        found = _count_shown(session, *which) if kind == "train" else _count_others(session, kind, *which)
    return {state: found.get(state, 0) for state in STATES}


def paused_since(engine: Engine) -> float | None:
    """Return since when the whole queue is paused; None when it is open."""
    with reading(engine) as session:
        return session.scalar(select(m.QueuePause.since))


def sweeps(engine: Engine) -> list[SweepRow]:
    """Return the sweeps with their jobs by kind and state, oldest first; without those whose jobs are all hidden."""
    grouped = select(m.Job.sweep_id, m.Job.state, func.count()).group_by(m.Job.sweep_id, m.Job.state)
    others = select(m.Job.sweep_id, m.Job.kind, m.Job.state, func.count()).where(*_ARE_OTHERS)
    others = others.group_by(m.Job.sweep_id, m.Job.kind, m.Job.state)
    columns = [getattr(m.SweepRow, name) for name in SweepRow.__slots__ if name not in ("counts", "evaluations")]
    with reading(engine) as session:
        rows = session.execute(select(*columns).order_by(m.SweepRow.id)).all()
        tally: dict[int, dict[str, int]] = {row.id: dict.fromkeys(STATES, 0) for row in rows}
        for sweep_id, state, number in session.execute(grouped):
            tally.setdefault(sweep_id, {})[state] = number
        apart = session.execute(others).all()
        hidden = session.execute(select(m.Job.sweep_id, m.Job.state).where(_IS_HIDDEN)).all()
    for sweep_id, state in hidden:
        tally[sweep_id][state] -= 1
    gone = {row[0] for row in hidden if not any(tally[row[0]].values())}
    evaluations: dict[int, dict[str, int]] = {}
    for sweep_id, kind, state, number in apart:
        tally[sweep_id][state] -= number
        if kind == "evaluate":
            evaluations.setdefault(sweep_id, dict.fromkeys(STATES, 0))[state] = number
    none: dict[str, int] = dict.fromkeys(STATES, 0)
    return [
        SweepRow(**row._mapping, counts=tally[row.id], evaluations=evaluations.get(row.id, none))
        for row in rows
        if row.id not in gone
    ]


def workers(engine: Engine) -> list[WorkerRow]:
    """Return the workers that hold a lease, by name."""
    job, lease, attempt = m.Job, m.LeaseRow, m.Attempt
    who = (
        attempt.worker,
        attempt.host,
        attempt.pid,
        attempt.device,
        lease.job_id,
        lease.attempt,
        m.SweepRow.name.label("sweep"),
    )
    how = (attempt.started_at, lease.tokens_seen, lease.tokens_per_second)
    ages = ((lease.expires_at - db_now()).label("lease_left"), (db_now() - lease.progress_at).label("progress_age"))
    query = (
        select(*who, *how, *ages)
        .join(job, job.id == lease.job_id)
        .join(m.SweepRow, m.SweepRow.id == job.sweep_id)
        .join(attempt, (attempt.job_id == lease.job_id) & (attempt.attempt == lease.attempt))
        .order_by(attempt.worker, lease.job_id)
    )
    with reading(engine) as session:
        return [WorkerRow(**row._mapping) for row in session.execute(query)]
