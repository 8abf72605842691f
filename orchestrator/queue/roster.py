"""Who works on the queue: workers say that they live, and read what a person wants of them. No job depends on it."""

from collections.abc import Sequence
from typing import Literal, cast

from sqlalchemy import ColumnElement, Delete, Engine, delete, func, insert, or_, update

from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import WorkerRow
from orchestrator.queue.terms import Worker

Wish = Literal["run", "drain", "stop"]
MISSED_REPORTS, SLACK_SECONDS = 3.0, 5.0
"""A worker that misses so many reports, and so many seconds more, counts as lost."""
WEEK_SECONDS = 7 * 86_400.0


def report(engine: Engine, worker: Worker, *, token: str, version: str, every_seconds: float) -> Wish:
    """Say that a worker lives, and return what a person wants of it; the first report registers it.

    `token` names this life of it, and `every_seconds` is the time to its next report.

    Raises:
        StorageError: the database did not answer; the worker goes on as it was.
    """
    mine = update(WorkerRow).where(WorkerRow.token == token).values(seen_at=db_now())
    with transaction(engine) as session:
        wish = session.scalar(mine.returning(WorkerRow.desired))
        if wish is None:
            session.execute(_old(WEEK_SECONDS))
            now = db_now()
            times = {"started_at": now, "seen_at": now, "every_seconds": every_seconds}
            row = insert(WorkerRow).values(token=token, version=version, desired="run", **vars(worker), **times)
            session.execute(row)
    return cast(Wish, wish or "run")


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
