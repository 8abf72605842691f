"""Rows about activation caches, for people to read; what is really there, the folders on disk say."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine, delete, select

from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import ActivationCache
from orchestrator.queue.fencing import dialect_insert


def record(engine: Engine, **values: Any) -> None:
    """Insert or update the row of a cache that is in use; `values` are its columns without the times.

    Raises:
        StorageError: the database did not answer.
    """
    fresh = {name: value for name, value in values.items() if name not in ("key", "uri")}
    with transaction(engine) as session:
        row = dialect_insert(session, ActivationCache).values(**values, created_at=db_now(), last_used_at=db_now())
        session.execute(
            row.on_conflict_do_update(index_elements=["key", "uri"], set_=fresh | {"last_used_at": db_now()})
        )


def delete_rows(engine: Engine, uris: Iterable[str]) -> None:
    """Delete the rows of caches that were removed.

    Raises:
        StorageError: the database did not answer.
    """
    with transaction(engine) as session:
        session.execute(delete(ActivationCache).where(ActivationCache.uri.in_([*uris])))


def list_rows(engine: Engine) -> list[ActivationCache]:
    """Return the rows, the cache used last first.

    Raises:
        StorageError: the database did not answer.
    """
    with reading(engine) as session:
        return [*session.scalars(select(ActivationCache).order_by(ActivationCache.last_used_at.desc()))]
