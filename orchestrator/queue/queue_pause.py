"""The queue as a whole: paused or open, and whether anything in it is left to do."""

from sqlalchemy import ColumnElement, Engine, delete, exists, func, insert, or_, select, text
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Event, Job, QueuePause, SweepRow
from orchestrator.queue.fencing import dialect_insert

_LOCK = 0x6F726367
"""Claims share this advisory lock until they commit; whoever pauses the queue has it alone."""

_IN_ORDER = func.set_config("enable_sort", "off", True)
"""Without fresh statistics PostgreSQL would sort the whole queue for its first row; the index has it in order."""

_ENTERING = select(_IN_ORDER, func.pg_advisory_xact_lock_shared(_LOCK))


def pause_queue(engine: Engine) -> bool:
    """Let no worker claim anything more; what runs goes on. Say whether the queue was open.

    When it returns no claim is on its way any more.

    Raises:
        StorageError: the database did not answer, or a claim hangs in it.
    """
    with transaction(engine) as session:
        if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer at a time anyway
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        row = dialect_insert(session, QueuePause).values(id=1, since=db_now()).on_conflict_do_nothing()
        return _noted(session, "queue_paused", session.scalar(row.returning(QueuePause.id)))


def resume_queue(engine: Engine) -> bool:
    """Let workers claim again. Say whether the queue was paused.

    Raises:
        StorageError: the database did not answer.
    """
    with transaction(engine) as session:
        return _noted(session, "queue_resumed", session.scalar(delete(QueuePause).returning(QueuePause.id)))


def is_open() -> ColumnElement[bool]:
    """Return the condition under which a claim may take anything; it names no job, and is judged once a statement."""
    return ~exists(select(QueuePause.id))


def enter(session: Session) -> None:
    """Begin a claim: on PostgreSQL whoever pauses the queue waits for its end, and it sees a pause that came before."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(_ENTERING)


def read_in_order(session: Session) -> None:
    """Let the rest of a transaction read the queue by its index."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(_IN_ORDER))


def is_done(engine: Engine) -> bool:
    """Say whether no job runs, and none is queued or waits for its next attempt; what is paused aside.

    Raises:
        StorageError: the database did not answer.
    """
    waits = (Job.state == "queued") & SweepRow.paused.is_(False) & is_open()
    left = select(Job.id).join(SweepRow).where(or_(Job.state == "running", waits)).limit(1)
    with reading(engine) as session:
        return session.scalar(left) is None


def _noted(session: Session, kind: str, changed: int | None) -> bool:
    if changed is not None:
        session.execute(insert(Event).values(at=db_now(), kind=kind))
    return changed is not None
