"""Activation caches on disk: one folder per key; its size, whether a process uses it, which is removed first."""

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
"""File of a cache that says what its key was made of, for people."""
PARTIAL = ".partial"
"""Suffix of a file or folder that is being written, or being deleted."""
_LOCK = "lock"


@dataclass(frozen=True)
class CacheFolder:
    """The activation cache of one key, on disk."""

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


def list_caches(root: Path) -> list[CacheFolder]:
    """Return the caches of a folder, the one used longest ago first."""
    found = [_look(path) for path in _folders(root) if not path.name.endswith(PARTIAL)]
    return sorted(found, key=lambda cache: (cache.used_at, cache.key))


def lock_for_use(path: Path) -> int:
    """Take a shared lock on a cache, made first where it is missing: no process removes it while the lock is held.

    Closing the descriptor that is returned, or the end of the process, releases the lock.

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
        with suppress(FileNotFoundError):  # the process that removed it meanwhile has moved it away, with its lock
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
    return not _run_if_unused(path, lambda: None)


def remove(path: Path) -> bool:
    """Delete a cache unless a process uses it; say whether it is deleted."""
    aside = path.with_name(f"{path.name}-{os.getpid()}{PARTIAL}")
    if not _run_if_unused(path, lambda: path.rename(aside)):
        return False
    shutil.rmtree(aside, ignore_errors=True)
    return True


def make_room(root: Path, wanted: int, limit: int) -> bool:
    """Remove the caches used longest ago until `wanted` more bytes fit a limit; say whether they do.

    Caches in use stay. Nothing is removed where even removing all others would not help.
    """
    caches = list_caches(root)
    used = sum(cache.bytes for cache in caches)
    if used + wanted <= limit:
        return True
    unused = [cache for cache in caches if not in_use(cache.path)]
    if used - sum(cache.bytes for cache in unused) + wanted > limit:
        return False
    for cache in unused:
        if remove(cache.path):
            used -= cache.bytes
        if used + wanted <= limit:
            return True
    return False


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    with suppress(OSError):
        if not path.is_dir():
            return path.lstat().st_size
    return sum(size(inner) for inner in _children(path))


def _look(path: Path) -> CacheFolder:
    files = _children(path)
    facts: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        facts = json.loads((path / FACTS).read_text())
    used_at = 0.0
    with suppress(OSError):
        used_at = (path / _LOCK if (path / _LOCK).exists() else path).stat().st_mtime
    shards = sum(file.suffix == ".bin" for file in files)
    return CacheFolder(path.name, path, sum(map(size, files)), shards, used_at, facts)


def _run_if_unused(path: Path, action: Callable[[], object]) -> bool:
    """Run an action under the cache's exclusive lock; say whether no process used the cache and the action worked."""
    try:
        descriptor = os.open(path / _LOCK, os.O_RDWR)
    except FileNotFoundError:  # a process that begins to use it makes the lock, and checks that it stays
        return _worked(action)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _worked(action)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _worked(action: Callable[[], object]) -> bool:
    try:
        action()
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
