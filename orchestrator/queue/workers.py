"""Who works on the queue: workers say that they live, and read what a person wants of them. No job depends on it."""

from collections.abc import Sequence
from typing import Literal, cast

from sqlalchemy import ColumnElement, Delete, Engine, delete, func, insert, or_, select, update

from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import Event, WorkerRow
from orchestrator.queue.types import Worker

Wish = Literal["run", "drain", "stop"]
MISSED_REPORTS, SLACK_SECONDS = 3.0, 5.0
"""A worker that misses so many reports, and so many seconds more, counts as lost."""
WEEK_SECONDS = 7 * 86_400.0
STEP_SECONDS = 30.0
"""By so much the database's clock must disagree with a worker's own time between two reports to have been set."""


def report(
    engine: Engine, worker: Worker, *, token: str, version: str, every_seconds: float, elapsed: float | None = None
) -> Wish:
    """Say that a worker lives, and return what a person wants of it; the first report registers it.

    `token` names this life of it, and `every_seconds` is the time to its next report. `elapsed` is the time since its
    last one by a clock that nobody sets: where the database's says otherwise, an event `clock_stepped` tells it.

    Raises:
        StorageError: the database did not answer; the worker goes on as it was.
    """
    last = select(WorkerRow.desired, (db_now() - WorkerRow.seen_at).label("theirs")).where(WorkerRow.token == token)
    with transaction(engine) as session:
        row = session.execute(last).one_or_none()
        now = db_now()
        if row is None:
            session.execute(_old(WEEK_SECONDS))
            times = {"started_at": now, "seen_at": now, "every_seconds": every_seconds}
            values = {"token": token, "version": version, "desired": "run"}
            session.execute(insert(WorkerRow).values(**values, **vars(worker), **times))
            return "run"
        session.execute(update(WorkerRow).where(WorkerRow.token == token).values(seen_at=now))
        if elapsed is not None and abs(step := row.theirs - elapsed) > STEP_SECONDS:
            data = {"seconds": round(step, 1), "worker": worker.name}
            session.execute(insert(Event).values(at=now, kind="clock_stepped", data=data))
    return cast(Wish, row.desired)


def sign_off(engine: Engine, token: str) -> None:
    """Note that a worker has ended.

    Raises:
        StorageError: the database did not answer; it will count as lost.
    """
    with transaction(engine) as session:
        session.execute(update(WorkerRow).where(WorkerRow.token == token).values(ended_at=db_now()))


def ask(engine: Engine, tokens: Sequence[str], wish: Wish) -> None:
    """Ask workers to drain or to stop; one that was asked to stop stays so, and one that has ended is left alone."""
    asked = update(WorkerRow).where(WorkerRow.token.in_(tokens), WorkerRow.ended_at.is_(None))
    with transaction(engine) as session:
        session.execute(asked.where(WorkerRow.desired != "stop").values(desired=wish))


def forget(engine: Engine, *, older_than: float) -> int:
    """Strike out workers that ended, or fell silent, so many seconds ago; return how many."""
    with transaction(engine) as session:
        return len(session.scalars(_old(older_than).returning(WorkerRow.token)).all())


def is_lost() -> ColumnElement[bool]:
    """Return the condition on a row of a worker that has not ended and that nobody has heard of."""
    silent = WorkerRow.seen_at + WorkerRow.every_seconds * MISSED_REPORTS + SLACK_SECONDS < db_now()
    return WorkerRow.ended_at.is_(None) & silent


def _old(seconds: float) -> Delete:
    gone = or_(WorkerRow.ended_at.is_not(None), is_lost())
    return delete(WorkerRow).where(gone, func.coalesce(WorkerRow.ended_at, WorkerRow.seen_at) < db_now() - seconds)
