"""The schema's version: opened when it fits, made in the embedded mode, refused when a service database lags."""

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, column, func, select, table, text
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.database.engine import connect, explained
from orchestrator.errors import StorageError
from orchestrator.masking import mask
from orchestrator.settings import Settings

HEAD = "0018"
"""The newest migration; a test compares it with the folder, so that opening need not load Alembic."""
_NEWER = f"A newer orch made it? This one knows schemas up to {HEAD}: install the newer version."
VERSION_TABLE = "orch_alembic_version"
_MIGRATIONS = Path(__file__).parents[2] / "migrations"
_ADVISORY_LOCK = 0x6F726368  # "orch"


def open_database(settings: Settings) -> Engine:
    """Return an engine on a database whose schema is current; the embedded one is made and upgraded on the way.

    Raises:
        StorageError: no answer, no room, or a schema that `orch db upgrade` must bring up to date.
    """
    if settings.embedded:
        make_folder(settings.home, file="orch.db")
    engine = connect(settings.database)
    try:
        found = version(engine)
        if found != HEAD:
            _upgrade_or_refuse(settings, found)
    except BaseException:
        engine.dispose()
        raise
    return engine


def upgrade(settings: Settings) -> str:
    """Bring the schema to the newest version and return that version. Safe to call twice, also at once.

    Raises:
        StorageError: no answer, or a database made by a newer version of orch.
    """
    if settings.embedded:
        make_folder(settings.home, file="orch.db")
    engine = connect(settings.database, limits=False)
    try:
        with _one_at_a_time(settings), engine.execution_options(orch_write=True).begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            _migrate(connection)
    except SQLAlchemyError as error:
        raise explained(error, str(engine.url)) from error
    finally:
        engine.dispose()
    return HEAD


def current(settings: Settings) -> str | None:
    """Return the version of the schema, or None where there is none.

    Raises:
        StorageError: no answer.
    """
    if settings.embedded and not (settings.home / "orch.db").exists():
        return None
    engine = connect(settings.database)
    try:
        return version(engine)
    finally:
        engine.dispose()


def migration_config(connection: Connection | None = None) -> Any:
    """Return Alembic's Config for our migrations; Alembic is loaded here and nowhere else."""
    from alembic.config import Config

    config = Config(stdout=sys.stdout)  # its default is what that was when Alembic was loaded: closed by now, perhaps
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _upgrade_or_refuse(settings: Settings, found: str | None) -> None:
    if settings.embedded:
        upgrade(settings)
        return
    raise other_schema(settings, found)


def other_schema(settings: Settings, found: str | None) -> StorageError:
    """Return the error of a database whose schema is not this version's."""
    state = f"has schema {found}" if found else "has no schema of ours yet"
    hint = _NEWER if found and found > HEAD else "Run: orch db upgrade"
    return StorageError(f"database {mask(settings.database)} {state}; this version needs {HEAD}", hint=hint)


def version(engine: Engine) -> str | None:
    """Return the version of the schema of an engine's database, or None where there is none.

    Raises:
        StorageError: no answer.
    """
    try:
        with engine.connect() as connection:
            if (
                engine.dialect.name == "postgresql"
                and connection.scalar(select(func.to_regclass(VERSION_TABLE))) is None
            ):
                return None
            found: str | None = connection.scalar(select(column("version_num")).select_from(table(VERSION_TABLE)))
            return found
    except SQLAlchemyError as error:
        if "no such table" in str(error):
            return None
        raise explained(error, str(engine.url)) from error


def _migrate(connection: Connection) -> None:
    from alembic import command
    from alembic.util.exc import CommandError

    try:
        command.upgrade(migration_config(connection), "head")
    except CommandError as error:
        raise StorageError(f"the database cannot be upgraded: {error}", hint=_NEWER) from error


def make_folder(home: Path, *, file: str | None = None) -> None:
    """Make the data folder, and an empty database in it, where they are not there: for their owner alone.

    Raises:
        StorageError: the folder cannot be made, or written.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if file and not (home / file).exists():
            os.close(os.open(home / file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        full = error.errno == errno.ENOSPC
        hint = "Free some space." if full else "Set ORCH_HOME, or home in orch.toml, to a folder that may be written."
        raise StorageError(f"data folder {home}: {error.strerror}", hint=hint) from error


@contextmanager
def _one_at_a_time(settings: Settings) -> Iterator[None]:
    if not settings.embedded:
        yield
        return
    try:
        handle = os.open(settings.home / "orch.db.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        hint = "Set ORCH_HOME, or home in orch.toml, to a folder that may be written."
        raise StorageError(f"data folder {settings.home}: {error.strerror}", hint=hint) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
