"""MLflow's store on this machine: made beside its place and renamed, so that it is there whole or not at all."""

import fcntl
import os
import sqlite3
import time
import uuid
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from orchestrator.database.schema import make_folder
from orchestrator.errors import StorageError
from orchestrator.mlflow_store import fault
from orchestrator.settings import Settings, sqlite_file, sqlite_url

ARTIFACTS = "mlartifacts"
"""The folder of artifacts, in the data folder."""
_PARTIAL = ".partial"


def prepare(settings: Settings) -> Path | None:
    """Make the store where it is not there; one process at a time does.

    A damaged one of our own is set aside first, and where it has gone is returned: all it held can be projected anew.
    Six processes that made a schema in one fresh file at once were seen to break it for good, and so does one killed.

    Raises:
        StorageError: it cannot be made, or one that a person named is damaged.
    """
    file = sqlite_file(settings.tracking)
    if file is None:
        return None
    make_folder(settings.home)
    with (settings.home / "mlflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        aside = None
        wrong = fault(file) if file.exists() else None
        if wrong is not None:
            if settings.tracking_url:
                raise StorageError(
                    f"{file} is damaged: {wrong}", hint="Remove it: orch tracking sync SWEEP fills it anew."
                )
            aside = _set_aside(file)
        if not file.exists() or not file.stat().st_size:
            _make(file, settings.home / ARTIFACTS)
        with closing(sqlite3.connect(file)) as store:
            store.execute("PRAGMA journal_mode=WAL")
            if not settings.tracking_url:
                _follow_home(store, settings.home / ARTIFACTS)
    return aside


def _set_aside(file: Path) -> Path:
    aside = file.with_name(f"{file.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
    for ending in ("", "-wal", "-shm", "-journal"):
        part = file.with_name(file.name + ending)
        if part.exists():
            part.rename(aside.with_name(aside.name + ending))
    return aside


def _make(file: Path, artifacts: Path) -> None:
    """Let MLflow make its schema in a file beside; then rename the file."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left in file.parent.glob(f"{file.name}.*{_PARTIAL}*"):
        left.unlink(missing_ok=True)
    beside = file.with_name(f"{file.name}.{uuid.uuid4().hex}{_PARTIAL}")
    os.close(os.open(beside, os.O_RDWR | os.O_CREAT, 0o600))
    made_by: Any = SqlAlchemyStore
    try:
        with warnings.catch_warnings(action="ignore"):
            made_by(sqlite_url(beside), artifacts.as_uri()).engine.dispose()
        beside.replace(file)
    except (OSError, SQLAlchemyError, MlflowException) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StorageError(f"MLflow cannot make its store {file}: {first}", hint="Is there room? orch doctor") from None
    finally:
        for left in file.parent.glob(f"{beside.name}*"):
            left.unlink(missing_ok=True)


def _follow_home(store: sqlite3.Connection, folder: Path) -> None:
    """Let our own store name the artifacts in the data folder where that is now: MLflow stores whole paths.

    Of a folder that was moved or copied, it would write new artifacts to the old place, and make that anew.
    """
    here = folder.as_uri()
    with store:
        for number, old in store.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall():
            before, _, name = str(old).rpartition("/")
            if before == here or before.rpartition("/")[2] != ARTIFACTS:
                continue
            new = f"{here}/{name}"
            store.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, number))
            store.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (new, len(old) + 1, number, len(old), old),
            )
