"""The workers, by the rows they register and the leases they hold."""

from collections import defaultdict
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from orchestrator.database import models as m
from orchestrator.database.engine import db_now, reading
from orchestrator.queue.workers import is_lost
from orchestrator.results.rows import RegisteredWorker

LEAVING = {"drain": "draining", "stop": "stopping"}


def registered_workers(engine: Engine, *, ended: bool = False) -> list[RegisteredWorker]:
    """Return the workers by name and start, with `ended` those too that have ended.

    Raises:
        StorageError: the database did not answer.
    """
    worker = m.WorkerRow
    silent = (db_now() - worker.seen_at).label("silent")
    query = select(worker, is_lost().label("is_lost"), silent).order_by(worker.name, worker.started_at)
    if not ended:
        query = query.where(worker.ended_at.is_(None))
    with reading(engine) as session:
        held = _held(session)
        rows = session.execute(query).all()
        last = {_who(row): row.token for row, _, _ in rows}  # a process id may come again after a restart
        return [
            _row(row, lost, silent, held.get(_who(row), []) if last[_who(row)] == row.token else [])
            for row, lost, silent in rows
        ]


def worker_stance(session: Session) -> str:
    """Return whether a live worker claims jobs: open, unwell or leaving when none does, none without any."""
    columns = select(m.WorkerRow.desired, m.WorkerRow.unwell.is_(None).label("is_well"))
    found = {
        tuple(row) for row in session.execute(columns.where(m.WorkerRow.ended_at.is_(None), ~is_lost()).distinct())
    }
    if ("run", True) in found:
        return "open"
    if ("run", False) in found:
        return "unwell"
    return "leaving" if found else "none"


def last_clock_step(engine: Engine, *, within: float) -> dict[str, Any] | None:
    """Return the last step of the database's clock that a worker noticed: `seconds`, and its own name as `worker`.

    None: there was none `within` so many seconds.
    """
    noted = m.Event.job_id.is_(None) & (m.Event.kind == "clock_stepped") & (m.Event.at > db_now() - within)
    with reading(engine) as session:
        return session.scalar(select(m.Event.data).where(noted).order_by(m.Event.id.desc()).limit(1))


_Who = tuple[str, str, int]


def _who(row: m.WorkerRow) -> _Who:
    return row.name, row.host, row.pid


def _held(session: Session) -> dict[_Who, list[tuple[int, float | None]]]:
    attempt, lease = m.Attempt, m.LeaseRow
    mine = (attempt.job_id == lease.job_id) & (attempt.attempt == lease.attempt)
    who = (attempt.worker, attempt.host, attempt.pid)
    query = select(*who, lease.job_id, lease.tokens_per_second).join(attempt, mine).order_by(lease.job_id)
    held: dict[_Who, list[tuple[int, float | None]]] = defaultdict(list)
    for name, host, pid, job_id, rate in session.execute(query):
        held[name, host, pid].append((job_id, rate))
    return held


def _row(row: m.WorkerRow, lost: bool, silent: float, jobs: list[tuple[int, float | None]]) -> RegisteredWorker:
    rates = [rate for _, rate in jobs if rate is not None]
    at_work = "at work" if jobs else "unwell" if row.unwell else "idle"
    state = "ended" if row.ended_at else "lost" if lost else LEAVING.get(row.desired, at_work)
    return RegisteredWorker(
        token=row.token, name=row.name, host=row.host, pid=row.pid, device=row.device, version=row.version,
        state=state, unwell=row.unwell, jobs=tuple(job_id for job_id, _ in jobs),
        tokens_per_second=sum(rates) if rates else None,
        started_at=row.started_at, seen_at=row.seen_at, silent=silent, ended_at=row.ended_at,
    )  # fmt: skip
