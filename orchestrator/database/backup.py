"""Copy a database into a file while workers write to it: SQLite by its backup API, PostgreSQL by pg_dump."""

import os
import shlex
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import NotFound, OrchError, StateError, StorageError

if TYPE_CHECKING:
    from sqlalchemy import URL

_FROM_URL = {
    "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY",
    "options": "PGOPTIONS", "passfile": "PGPASSFILE", "password": "PGPASSWORD", "service": "PGSERVICE",
}  # fmt: skip
"""Query parameters of a database URL, and the environment variables in which PostgreSQL's programs read them."""


def back_up(url: str, file: Path, *, force: bool) -> str:
    """Copy a database into a new file, which is there whole or not at all; return how to go back to it.

    Raises:
        StateError: the file is there already, and `force` is off; or it is the database itself.
        NotFound: there is no database yet.
        StorageError: the database does not answer, or the copy is not sound.
        OrchError: PostgreSQL's pg_dump is not installed; the hint has the command to run elsewhere.
    """
    from sqlalchemy import make_url

    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        source = Path(address.database or "")
        if not source.is_file():
            raise NotFound(f"there is no database yet: {source}", hint="orch doctor says where everything is")
        if file.exists() and file.samefile(source):
            raise StateError(f"{file} is the database itself", hint="Name another file for the copy")
        _write_beside(file, lambda new: _copy_sqlite(source, new), force=force)
        return f"stop the workers, remove {source}-wal and {source}-shm, and copy {file} to {source}"
    _write_beside(file, lambda new: _dump_postgres(address, new, shown=file), force=force)
    name = address.database or "orch"
    return f"stop the workers, createdb NEW, pg_restore --dbname=NEW {file}, and let database_url name NEW, not {name}"


def _write_beside(file: Path, write: Callable[[Path], None], *, force: bool) -> None:
    """Let a temporary file beside the wanted one be written, then rename it: a copy is there whole or not at all."""
    if file.exists() and not force:
        raise StateError(f"{file} is there already", hint="Name another file, or write over it with --force")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".partial", dir=file.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file.parent)) from None
    os.close(handle)
    new = Path(name)
    try:
        write(new)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def _copy_sqlite(source: Path, new: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as there,
            closing(sqlite3.connect(new)) as here,
        ):
            there.backup(here)
            here.execute("PRAGMA journal_mode = DELETE")  # one file, with no -wal beside it
            found = here.execute("PRAGMA integrity_check").fetchone()[0]
    except sqlite3.Error as error:
        raise StorageError(f"{source} cannot be copied: {error}", hint="Is there room? orch doctor") from error
    if found != "ok":
        raise StorageError(f"{source} is damaged: {found}", hint="The copy was thrown away. Go back to an earlier one.")


def _dump_postgres(address: "URL", new: Path, *, shown: Path) -> None:
    command = ["pg_dump", "--format=custom", "--no-password", *_connection(address)]
    if shutil.which("pg_dump") is None:
        there = shlex.join([*command, f"--file={shown}"])
        raise OrchError(
            "pg_dump is not on the PATH: PostgreSQL's own program makes the copy",
            hint=f"Install it, or run this where it is, the password in PGPASSWORD or ~/.pgpass: {there}",
        )
    environment = os.environ | {"PGAPPNAME": "orch", "PGCONNECT_TIMEOUT": "10"} | _secrets(address)
    done = subprocess.run(
        [*command, f"--file={new}"],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise StorageError(f"pg_dump: {last}", hint="It must be as new as the server, and reach it: orch doctor")


def _connection(address: "URL") -> list[str]:
    """Return the flags that name the database, nothing secret among them."""
    named = {"host": address.host, "port": address.port, "username": address.username, "dbname": address.database}
    return [f"--{name}={value}" for name, value in named.items() if value]


def _secrets(address: "URL") -> dict[str, str]:
    """Return what must not be seen in a list of processes, as environment variables."""
    given = {_FROM_URL[name]: value for name, value in address.query.items() if name in _FROM_URL}
    found = {name: value if isinstance(value, str) else value[-1] for name, value in given.items()}
    return found | ({"PGPASSWORD": str(address.password)} if address.password else {})
