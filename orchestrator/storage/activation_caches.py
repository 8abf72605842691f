"""Activation caches on disk: one folder per key; how large each is, who uses it, and which one goes first."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FACTS = "key.json"
"""What the key was made of, for whoever looks."""
PARTIAL = ".partial"
"""End of the name of a file, or folder, that is not whole yet, or no longer."""
_LOCK = "lock"


@dataclass(frozen=True)
class Kept:
    """The cache of one key."""

    key: str
    path: Path
    bytes: int
    shards: int
    used_at: float
    """When a trainer last began to use it, by the file system's clock."""
    facts: dict[str, Any]


def folder(home: Path) -> Path:
    """Return where a data folder keeps its activation caches."""
    return home / "activations"


def kept(root: Path) -> list[Kept]:
    """Return the caches there are, the one used longest ago first."""
    found = [_look(path) for path in _folders(root) if not path.name.endswith(PARTIAL)]
    return sorted(found, key=lambda one: (one.used_at, one.key))


def hold(path: Path) -> int:
    """Say that this process uses a cache, which is made where it is not there: nobody removes it meanwhile.

    Closing the descriptor that is returned, or the end of the process, gives it up.

    Raises:
        OSError: the folder cannot be made or written.
    """
    while True:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if os.path.lexists(path) and not path.is_dir():
                raise
            continue
        with suppress(FileNotFoundError):  # whoever removed it in between has moved it away, and its lock with it
            descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                os.utime(descriptor)
                if os.fstat(descriptor).st_ino == (path / _LOCK).stat().st_ino:
                    return descriptor
            except OSError:
                os.close(descriptor)
                raise
            os.close(descriptor)


def in_use(path: Path) -> bool:
    """Say whether a process, this one included, uses a cache."""
    return not _alone(path, lambda: None)


def remove(path: Path) -> bool:
    """Delete a cache, unless a process uses it; say whether it is gone."""
    aside = path.with_name(f"{path.name}-{os.getpid()}{PARTIAL}")
    if not _alone(path, lambda: path.rename(aside)):
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def make_room(root: Path, wanted: int, limit: int) -> bool:
    """Remove the caches used longest ago until `wanted` more bytes fit a limit; say whether they do.

    Those in use stay. Nothing is removed where even that would not help.
    """
    caches = kept(root)
    used = sum(one.bytes for one in caches)
    idle = [one for one in caches if used + wanted > limit and not in_use(one.path)]
    if used - sum(one.bytes for one in idle) + wanted > limit:
        return False
    for one in idle:
        if used + wanted <= limit:
            break
        used -= one.bytes * remove(one.path)
    return used + wanted <= limit


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    with suppress(OSError):
        if not path.is_dir():
            return path.lstat().st_size
    return sum(size(inner) for inner in _children(path))


def _look(path: Path) -> Kept:
    files = _children(path)
    facts: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        facts = json.loads((path / FACTS).read_text())
    used_at = 0.0
    with suppress(OSError):
        used_at = (path / _LOCK if (path / _LOCK).exists() else path).stat().st_mtime
    shards = sum(file.suffix == ".bin" for file in files)
    return Kept(path.name, path, sum(map(size, files)), shards, used_at, facts)


def _alone(path: Path, act: Callable[[], object]) -> bool:
    """Act while no process uses a cache; say whether that could be."""
    try:
        descriptor = os.open(path / _LOCK, os.O_RDWR)
    except FileNotFoundError:  # whoever begins to use it makes the lock, and looks whether it stays
        return _done(act)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _done(act)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _done(act: Callable[[], object]) -> bool:
    try:
        act()
    except OSError:
        return False
    return True


def _folders(root: Path) -> Iterator[Path]:
    return (path for path in _children(root) if path.is_dir())


def _children(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []
