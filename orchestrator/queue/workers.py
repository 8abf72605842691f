"""The registry of workers: they report that they live, and read their desired state. No job depends on it."""

from collections.abc import Sequence
from itertools import count
from typing import Literal, cast

from sqlalchemy import ColumnElement, Delete, Engine, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Event, Job, WorkerRow
from orchestrator.database.schema import HEAD
from orchestrator.errors import StateError
from orchestrator.queue.types import Worker

Desired = Literal["run", "drain", "stop"]
MISSED_REPORTS, SLACK_SECONDS = 3.0, 5.0
"""A worker counts as lost after so many reports that did not come, and so many seconds more."""
WEEK_SECONDS = 7 * 86_400.0
STEP_SECONDS = 30.0
"""Between two reports: when the database's clock and the worker's differ by more, the former has been set."""
_FIRST_SCHEMA = {"evaluate": "0016", "lens": "0018"}
"""Of each kind of jobs that came later than trainings: the schema of the first version that has it."""
_NAMED = {"evaluate": "evaluations", "lens": "tuned lenses"}


def report(
    engine: Engine, worker: Worker, *, token: str, version: str, every_seconds: float, elapsed: float | None = None,
    unwell: str | None = None,
) -> Desired:  # fmt: skip
    """Report that a worker lives, and return its desired state; the first report registers it.

    `token` identifies this process, `unwell` says why it claims nothing at the moment, and `every_seconds` is the time
    to its next report. `elapsed` is the time since its last one by a monotonic clock: where the database's clock
    differs, an event `clock_stepped` is logged.

    Raises:
        StorageError: the database did not answer; the worker goes on as it was.
    """
    last = select(WorkerRow.desired, (db_now() - WorkerRow.seen_at).label("elapsed")).where(WorkerRow.token == token)
    with transaction(engine) as session:
        row = session.execute(last).one_or_none()
        now = db_now()
        if row is None:
            session.execute(_old(WEEK_SECONDS))
            times = {"started_at": now, "seen_at": now, "every_seconds": every_seconds}
            values = {"token": token, "version": version, "desired": "run", "unwell": unwell, "schema": HEAD}
            session.execute(insert(WorkerRow).values(**values, **vars(worker), **times))
            return "run"
        session.execute(update(WorkerRow).where(WorkerRow.token == token).values(seen_at=now, unwell=unwell))
        if elapsed is not None and abs(row.elapsed - elapsed) > STEP_SECONDS:
            data = {"seconds": round(row.elapsed - elapsed, 1), "worker": worker.name}
            session.execute(insert(Event).values(at=now, kind="clock_stepped", data=data))
            # Set back: who waits for a time of the old clock would wait as much longer.
            waiting = (Job.state == "queued", Job.not_before > db_now(), bindparam("step") < 0)
            earlier = update(Job).where(*waiting).values(not_before=Job.not_before + bindparam("step"))
            session.connection().execute(earlier, {"step": row.elapsed - elapsed})
    return cast(Desired, row.desired)


def counts_beside(engine: Engine, worker: Worker) -> tuple[int, int]:
    """Return how many workers of its host, and of its machine, have neither ended nor fallen silent.

    Raises:
        StorageError: the database did not answer.
    """
    here, same_machine = WorkerRow.host == worker.host, WorkerRow.machine == worker.machine
    columns = (func.count().filter(here), func.count().filter(or_(here, same_machine)))
    with reading(engine) as session:
        on_host, on_machine = session.execute(select(*columns).where(_lives())).one()
    return on_host, on_machine


def free_name(engine: Engine, name: str, *, is_new: bool = False) -> str:
    """Return a name that no live worker has, where it `is_new` none there was: that given, or with -2, -3, … behind."""
    known = select(WorkerRow.name)
    with reading(engine) as session:
        taken = set(session.scalars(known if is_new else known.where(_lives())))
    numbered = (f"{name}-{number}" for number in count(2))
    return name if name not in taken else next(one for one in numbered if one not in taken)


def refuse_older(session: Session, kind: Literal["evaluate", "lens"]) -> None:
    """Refuse to queue a job of a kind while a worker lives whose version has none: it would take it for a training.

    Raises:
        StateError: names them. No such worker starts any more: it refuses the schema.
    """
    is_older = func.coalesce(WorkerRow.schema, "") < _FIRST_SCHEMA[kind]
    names = list(session.scalars(select(WorkerRow.name).where(_lives(), is_older).order_by(WorkerRow.name)))
    if names:
        some = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
        raise StateError(
            f"workers of an earlier version are at work, which know no {_NAMED[kind]}: {some}",
            hint=f"orch worker stop {names[0]}, and start it again: its jobs go on from their checkpoints",
        )


def sign_off(engine: Engine, token: str) -> None:
    """Note that a worker has ended.

    Raises:
        StorageError: the database did not answer; it will count as lost.
    """
    with transaction(engine) as session:
        session.execute(update(WorkerRow).where(WorkerRow.token == token).values(ended_at=db_now()))


def ask(engine: Engine, tokens: Sequence[str], desired: Desired) -> None:
    """Ask workers to drain or to stop; one that was asked to stop stays so, and one that has ended is left alone."""
    asked = update(WorkerRow).where(WorkerRow.token.in_(tokens), WorkerRow.ended_at.is_(None))
    with transaction(engine) as session:
        session.execute(asked.where(WorkerRow.desired != "stop").values(desired=desired))


def forget(engine: Engine, *, older_than: float) -> int:
    """Delete the rows of workers that ended, or fell silent, so many seconds ago; return how many."""
    with transaction(engine) as session:
        return len(session.scalars(_old(older_than).returning(WorkerRow.token)).all())


def _lives() -> ColumnElement[bool]:
    return WorkerRow.ended_at.is_(None) & ~is_lost()


def is_lost() -> ColumnElement[bool]:
    """Return the condition on the row of a worker that has not ended and no longer reports."""
    silent = WorkerRow.seen_at + WorkerRow.every_seconds * MISSED_REPORTS + SLACK_SECONDS < db_now()
    return WorkerRow.ended_at.is_(None) & silent


def _old(seconds: float) -> Delete:
    gone = or_(WorkerRow.ended_at.is_not(None), is_lost())
    return delete(WorkerRow).where(gone, func.coalesce(WorkerRow.ended_at, WorkerRow.seen_at) < db_now() - seconds)
