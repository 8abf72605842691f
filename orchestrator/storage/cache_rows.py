"""What the database knows of activation caches: a note for people; the folders on disk decide."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine, delete, select

from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import ActivationCache
from orchestrator.queue.fencing import dialect_insert


def remember(engine: Engine, **values: Any) -> None:
    """Write down what a cache holds by now, and that it is used; `values` are the columns but for the times.

    Raises:
        StorageError: the database did not answer.
    """
    fresh = {name: value for name, value in values.items() if name not in ("key", "uri")}
    with transaction(engine) as session:
        row = dialect_insert(session, ActivationCache).values(**values, created_at=db_now(), last_used_at=db_now())
        session.execute(
            row.on_conflict_do_update(index_elements=["key", "uri"], set_=fresh | {"last_used_at": db_now()})
        )


def forget(engine: Engine, uris: Iterable[str]) -> None:
    """Strike out caches that are gone.

    Raises:
        StorageError: the database did not answer.
    """
    with transaction(engine) as session:
        session.execute(delete(ActivationCache).where(ActivationCache.uri.in_([*uris])))


def known(engine: Engine) -> list[ActivationCache]:
    """Return what is written down, the cache used last first.

    Raises:
        StorageError: the database did not answer.
    """
    with reading(engine) as session:
        return [*session.scalars(select(ActivationCache).order_by(ActivationCache.last_used_at.desc()))]
