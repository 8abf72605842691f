"""Summarise a soak: figures from the database, and what was lost or done twice."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from benchmarks.fault_injection import Kill
from benchmarks.light_trainer import expected
from benchmarks.outages import Outage
from orchestrator.config.job import JobConfig
from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt, CurvePoint, Event, Job, ResultRow
from orchestrator.job_states import OUTCOMES


class Failovers(NamedTuple):
    """Seconds from the kill of a worker to the next claim of each job that it held."""

    plain: dict[str, float]
    """By what was lost."""
    judged: list[float]
    """Of those, until the lease was taken away; the rest is the wait for a free worker."""
    over_outages: list[float]
    """Those during which, or less than a lease after which, the database was down: then no lease is released."""
    held_back: list[float]
    """Those after a second loss in a row: the next attempt waits on purpose."""


def lost(engine: Engine, job_ids: Iterable[int]) -> list[str]:
    """Return the jobs that are not there, not over, or over without what they should have."""
    with reading(engine) as session:
        states = {row.id: row.state for row in session.execute(select(Job.id, Job.state))}
        results = set(session.scalars(select(ResultRow.job_id)))
        cancelled = set(session.scalars(select(Event.job_id).where(Event.kind.in_(("cancel", "cancel_asked")))))
    told = []
    for job_id in job_ids:
        state = states.get(job_id)
        asked = state == "cancelled" and job_id in cancelled
        if not asked and not (state == "succeeded" and job_id in results):
            told.append(f"job {job_id} is {state or 'gone'}, {'a' if job_id in results else 'no'} result")
    return told


def doubled(engine: Engine) -> list[str]:
    """Return the jobs that ended with a result more than once, or while another attempt had them."""
    ends = select(Attempt.job_id).where(Attempt.outcome.in_(OUTCOMES)).group_by(Attempt.job_id)
    told = select(Event.job_id).where(Event.kind == "succeeded").group_by(Event.job_id)
    stale = select(ResultRow.job_id).join(Job, Job.id == ResultRow.job_id).where(ResultRow.attempt != Job.attempt)
    with reading(engine) as session:
        found = {
            "ended twice": session.scalars(ends.having(func.count() > 1)).all(),
            "succeeded twice": session.scalars(told.having(func.count() > 1)).all(),
            "has the result of a dead attempt": session.scalars(stale).all(),
        }
    return [f"job {job_id} {what}" for what, jobs in found.items() for job_id in jobs]


def altered_curves(engine: Engine) -> list[str]:
    """Return the succeeded jobs whose curve differs from that of a job without faults."""
    columns = select(CurvePoint.job_id, CurvePoint.tokens_seen, CurvePoint.fvu)
    curves: dict[int, list[tuple[int, float | None]]] = defaultdict(list)
    with reading(engine) as session:
        for row in session.execute(columns.order_by(CurvePoint.job_id, CurvePoint.tokens_seen)):
            curves[row.job_id].append((row.tokens_seen, row.fvu))
        jobs = session.execute(select(Job.id, Job.config).where(Job.state == "succeeded", Job.kind == "train")).all()
    undisturbed = {job.id: expected(JobConfig.model_validate_json(job.config)) for job in jobs}
    return [f"job {job_id} has another curve" for job_id, curve in undisturbed.items() if curves[job_id] != curve]


def failovers(engine: Engine, kills: Sequence[Kill], outages: Sequence[Outage], *, lease_seconds: float) -> Failovers:
    """Return how long it took until what killed workers had held was claimed again."""
    found = Failovers({}, [], [], [])
    columns = (Attempt.job_id, Attempt.attempt, Attempt.worker, Attempt.started_at, Attempt.ended_at, Attempt.outcome)
    lost = select(*columns, Job.kind).join(Job, Job.id == Attempt.job_id)
    with reading(engine) as session:
        rows = session.execute(lost.order_by(Attempt.job_id, Attempt.attempt)).all()
        repeated = _repeated_losses(session)
    killed_at = {kill.worker: kill.at for kill in kills}
    away = [(outage.since, outage.until + lease_seconds) for outage in outages]
    for held, after in pairwise(rows):
        at = killed_at.get(held.worker)
        if held.outcome != "lost" or at is None or held.ended_at is None or held.job_id != after.job_id:
            continue
        if held.ended_at < at:  # it was frozen, and lost this one before
            continue
        seconds = after.started_at - at
        if (held.job_id, held.attempt) in repeated:
            found.held_back.append(seconds)
        elif any(since < after.started_at and at < until for since, until in away):
            found.over_outages.append(seconds)
        else:
            found.plain[f"attempt {held.attempt} of job {held.job_id} ({held.kind})"] = seconds
            found.judged.append(held.ended_at - at)
    return found


def _repeated_losses(session: Session) -> set[tuple[int, int]]:
    """Return the attempts that lost their worker after another had, without a checkpoint or a family in between."""
    in_row: Counter[int] = Counter()
    found = set()
    rows = session.execute(select(Event.job_id, Event.attempt, Event.kind, Event.data).order_by(Event.id))
    for job_id, attempt, kind, data in rows:
        if kind in ("checkpoint", "measured", "retry"):
            in_row[job_id] = 0
        elif (data or {}).get("outcome") == "lost":
            in_row[job_id] += 1
            if in_row[job_id] > 1:
                found.add((job_id, attempt))
    return found


def charged(engine: Engine) -> list[str]:
    """Return the attempts whose failure was the job's own by the queue's account: no job here has a fault."""
    columns = select(Attempt.job_id, Attempt.attempt, Attempt.outcome, Attempt.error)
    with reading(engine) as session:
        rows = session.execute(
            columns.where(Attempt.outcome.in_(("failed", "bad_config", "out_of_memory", "not_measured")))
        ).all()
    return [f"job {row.job_id} attempt {row.attempt} {row.outcome}: {row.error}" for row in rows]


def attempts(engine: Engine, *, outcome: str | None = None) -> int:
    """Return the number of attempts, of one outcome where it is given."""
    counted = select(func.count()).select_from(Attempt)
    with reading(engine) as session:
        return session.scalar(counted.filter_by(outcome=outcome) if outcome else counted) or 0
