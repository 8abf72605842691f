"""Whether the database is still the one that this worker began with: its file may be deleted or replaced under it."""

from pathlib import Path

from sqlalchemy import Engine

from orchestrator.database import schema


class DatabaseIdentity:
    """Remembers which file an embedded database is, and looks for the tables of any."""

    def __init__(self, engine: Engine) -> None:
        """Remember the database of an engine."""
        self._engine = engine
        self._file = Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None
        self._inode = self._found()

    def change(self) -> str | None:
        """Return what has become of it; None while it is the same.

        Raises:
            StorageError: it did not answer.
        """
        if self._file is not None and self._found() != self._inode:
            return f"{self._file} was {'replaced by another file' if self._file.exists() else 'deleted'}"
        if schema.version(self._engine) is None:
            return "its tables are gone"
        return None

    def _found(self) -> tuple[int, int] | None:
        try:
            found = self._file.stat() if self._file is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_dev, found.st_ino)
