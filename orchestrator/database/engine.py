"""The engine, its two session scopes, and the database's own clock."""

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Double, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from orchestrator.errors import ConfigError, StorageError
from orchestrator.masking import mask

_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 20_000}
"""A connection to a server that vanished fails after about 25 s; the last value is in milliseconds."""
_LIMITS = "-c statement_timeout=10000 -c lock_timeout=2000 -c idle_in_transaction_session_timeout=10000"
_OPTIONS = {"synchronize_session": False}

_HINTS = (
    (("disk is full", "no space left", "disk full"), "The disk is full: free some space, then do the same again."),
    (("disk i/o",), "The disk is full or failing: look after it, then do the same again."),
    (("readonly", "read-only"), "The database may only be read: check the owner and mode of its file and folder."),
    (("unable to open database file",), "Check that the data folder exists and may be written: orch doctor"),
    (("no such table", "no such column", "does not exist"), "The schema is missing or old: orch db upgrade"),
    (("not a database", "malformed"), "The file is damaged or no SQLite database: bring back a copy of it."),
    (("database is locked",), "Another process holds the database: try again; orch doctor names who works on it."),
    (("lock timeout", "statement timeout"), "The server is busy, or another session holds what this needs: try again."),
    (
        ("not answered", "connection timeout"),
        "It takes connections and does not answer: is it paused, overloaded, or behind a proxy that is? orch doctor",
    ),
    (
        ("connect", "resolve", "refused", "server closed", "terminating"),
        "Is the database server up, and its URL right? orch doctor",
    ),
)


class db_now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock: epoch seconds, of the statement and not of the transaction's start."""

    inherit_cache = True
    type = Double()


@compiles(db_now, "sqlite")
def _now_sqlite(_: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _now_postgres(_: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "(extract(epoch from clock_timestamp())::double precision)"


def connect(url: str, *, limits: bool = True) -> Engine:
    """Make an engine for a SQLite or PostgreSQL URL; `limits` bounds how long a server session may hold things up.

    Raises:
        ConfigError: not a URL, or of another database.
    """
    place = _parse(url)
    if place.get_backend_name() == "sqlite":
        engine = create_engine(place, json_serializer=_dumps, connect_args={"timeout": 30.0})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    asked = place.query.get("options", "")
    options = f"{_LIMITS if limits else ''} {asked if isinstance(asked, str) else ' '.join(asked)}".strip()
    arguments = {"application_name": "orch", "connect_timeout": 5, "options": options, **_KEEPALIVE}
    engine = create_engine(place, json_serializer=_dumps, pool_pre_ping=True, connect_args=arguments)
    from orchestrator.database.answering import make_answering  # loads psycopg

    make_answering(engine, limits=limits)
    return engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """Open the one write scope: commits at the end, rolls back on any error.

    Raises:
        StorageError: the database did not answer or refused, with what to do.
    """
    writer = engine.execution_options(orch_write=True)
    with _explaining(engine), Session(writer, execution_options=_OPTIONS) as session, session.begin():
        yield session


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Open a read-only scope.

    Raises:
        StorageError: the database did not answer or refused, with what to do.
    """
    # All statements of the scope see one snapshot: SQLite does so by itself.
    options: dict[str, Any] = {"isolation_level": "REPEATABLE READ"} if engine.name == "postgresql" else {}
    with _explaining(engine), Session(engine.execution_options(postgresql_readonly=True, **options)) as session:
        yield session


@contextmanager
def _explaining(engine: Engine) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise explained(error, str(engine.url)) from error


def explained(error: SQLAlchemyError, url: str) -> StorageError:
    """Turn a database error into one a person can act on."""
    said = str(getattr(error, "orig", None) or error).strip().splitlines()
    first = said[0] if said else type(error).__name__
    hint = next((hint for words, hint in _HINTS if any(word in first.lower() for word in words)), "")
    return StorageError(f"database {mask(url)}: {first}", hint=hint)


def _parse(url: str) -> URL:
    try:
        place = make_url(url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url)
        if place.get_backend_name() == "postgresql":
            place = place.set(drivername="postgresql+psycopg")
        place.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise ConfigError(f"database_url {mask(url)!r} is not a database URL", hint=_EXAMPLES) from None
    if place.get_backend_name() not in {"sqlite", "postgresql"}:
        raise ConfigError(f"database_url: {place.get_backend_name()} is not supported", hint=_EXAMPLES)
    return place


_EXAMPLES = "Such as postgresql+psycopg://user:password@host/orch, or sqlite:////folder/orch.db"


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` sends BEGIN: the driver would take no lock for a SELECT
    for pragma in ("busy_timeout=30000", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("orch_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _dumps(value: Any) -> str:
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
