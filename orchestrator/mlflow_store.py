"""The SQLite file in which MLflow keeps its runs: whether it is whole."""

import sqlite3
from contextlib import closing
from pathlib import Path

_MOST_CHECKED = 500_000_000
"""Bytes of a file whose every page is looked at: a second or two."""


def fault(file: Path) -> str | None:
    """Return why MLflow could not open a store that is there; None where nothing is wrong, or nothing is in it yet."""
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=3)) as store:
            return _fault(store, is_small=file.stat().st_size < _MOST_CHECKED)
    except sqlite3.OperationalError as error:
        return None if "locked" in str(error) else str(error)
    except (sqlite3.DatabaseError, OSError) as error:
        return str(error)


def _fault(store: sqlite3.Connection, *, is_small: bool) -> str | None:
    tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return None
    # MLflow writes its version with each step of its schema, and its first experiment after the last of them.
    parts = ("alembic_version", "experiments")
    if any(part not in tables or not store.execute(f"SELECT 1 FROM {part} LIMIT 1").fetchone() for part in parts):
        return "it was left half made"
    found = store.execute("PRAGMA quick_check(1)").fetchone()[0] if is_small else "ok"
    return None if found == "ok" else str(found)
