"""The queue as a whole: pause it, let it go on, and say whether any job is left to run."""

from sqlalchemy import Engine, delete, func, insert, or_, select, text
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Event, Job, QueuePause
from orchestrator.queue.eligibility import waits_by_itself
from orchestrator.queue.fencing import dialect_insert

_LOCK = 0x6F726367
"""Claims share this advisory lock until they commit; `pause_queue` takes it exclusively."""

_IN_ORDER = func.set_config("enable_sort", "off", True)
"""Without fresh statistics PostgreSQL would sort the whole queue for its first row; the index has it in order."""

_ENTERING = select(_IN_ORDER, func.pg_advisory_xact_lock_shared(_LOCK))


def pause_queue(engine: Engine) -> bool:
    """Let no worker claim anything more; running jobs go on. Say whether the queue was open.

    When it returns no claim is in progress any more.

    Raises:
        StorageError: the database did not answer, or a claim hangs in it.
    """
    with transaction(engine) as session:
        if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer at a time anyway
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        row = dialect_insert(session, QueuePause).values(id=1, since=db_now()).on_conflict_do_nothing()
        return _log_if_changed(session, "queue_paused", session.scalar(row.returning(QueuePause.id)))


def resume_queue(engine: Engine) -> bool:
    """Let workers claim again. Say whether the queue was paused.

    Raises:
        StorageError: the database did not answer.
    """
    with transaction(engine) as session:
        return _log_if_changed(session, "queue_resumed", session.scalar(delete(QueuePause).returning(QueuePause.id)))


def enter(session: Session) -> None:
    """Begin a claim: on PostgreSQL `pause_queue` waits for its end, and it sees a pause that came before."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(_ENTERING)


def read_in_order(session: Session) -> None:
    """Let the rest of a transaction read the queue by its index."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(_IN_ORDER))


def is_done(engine: Engine) -> bool:
    """Say whether no job runs, and none is queued that will run without a person resuming it.

    Raises:
        StorageError: the database did not answer.
    """
    left = select(Job.id).where(or_(Job.state == "running", waits_by_itself())).limit(1)
    with reading(engine) as session:
        return session.scalar(left) is None


def _log_if_changed(session: Session, kind: str, changed: int | None) -> bool:
    if changed is not None:
        session.execute(insert(Event).values(at=db_now(), kind=kind))
    return changed is not None
