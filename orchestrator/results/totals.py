"""Sums over jobs: by state, by sweep, the workers that hold leases, and whether the queue is open."""

from sqlalchemy import Engine, func, select

from orchestrator.database import models as m
from orchestrator.database.engine import db_now, reading
from orchestrator.results.shapes import SweepRow, WorkerRow


def counts(engine: Engine, *, sweep: str | None = None) -> dict[str, int]:
    """Return the number of jobs in every state, of one sweep or of all."""
    query = select(m.Job.state, func.count()).group_by(m.Job.state)
    if sweep is not None:
        query = query.join(m.SweepRow, m.SweepRow.id == m.Job.sweep_id).where(m.SweepRow.name == sweep)
    with reading(engine) as session:
        found = {row[0]: row[1] for row in session.execute(query)}
    return {state: found.get(state, 0) for state in m.STATES}


def paused_since(engine: Engine) -> float | None:
    """Return since when the whole queue is paused; None when it is open."""
    with reading(engine) as session:
        return session.scalar(select(m.QueuePause.since))


def sweeps(engine: Engine) -> list[SweepRow]:
    """Return every sweep with its jobs by state, oldest first."""
    grouped = select(m.Job.sweep_id, m.Job.state, func.count()).group_by(m.Job.sweep_id, m.Job.state)
    columns = [getattr(m.SweepRow, name) for name in SweepRow.__slots__ if name != "counts"]
    with reading(engine) as session:
        rows = session.execute(select(*columns).order_by(m.SweepRow.id)).all()
        tally: dict[int, dict[str, int]] = {row.id: dict.fromkeys(m.STATES, 0) for row in rows}
        for sweep_id, state, number in session.execute(grouped):
            tally.setdefault(sweep_id, {})[state] = number
    return [SweepRow(**row._mapping, counts=tally[row.id]) for row in rows]


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
