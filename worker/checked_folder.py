"""Files and folders that are whole or not there: written beside their place, flushed, renamed, checked by sha256.

A checked folder holds `manifest.json` with the sha256 of each of its other files; the manifest's own sha256 names the
folder's content.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from orchestrator.bounded_file import read_text, why_unread
from orchestrator.errors import CheckpointError, StorageError
from orchestrator.storage.activation_caches import PARTIAL

MANIFEST = "manifest.json"
_FORMAT = 1


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, content: bytes) -> None:
    """Write a small file atomically: a reader finds the old content or the new, whole.

    Raises:
        OSError: it cannot be written; nothing half-written stays.
    """
    beside = path.with_name(f"{os.getpid()}-{uuid.uuid4().hex}{PARTIAL}")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_folder(target: Path, fill: Callable[[Path], None]) -> str:
    """Write a checked folder atomically in place of what is there; return the sha256 of its manifest.

    `fill` writes the files into the folder it is given, and flushes each (`write_text`, `flush`).

    Raises:
        StorageError: the disk is full or refuses; nothing half-written stays.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        if target.exists():
            shutil.rmtree(target)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        sha256 = _write_manifest(partial)
        flush(partial)
        partial.rename(target)
        flush(target.parent)
    except (OSError, SafetensorError) as error:
        raise _refused(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sha256


def verify(folder: Path) -> str:
    """Check every file of a folder against its manifest; return the sha256 of the manifest.

    Raises:
        CheckpointError: a file is missing or was changed.
    """
    try:
        sums = json.loads(read_text(folder / MANIFEST, what="a manifest"))["sha256"]
        changed = [name for name, sha256 in sums.items() if sha256_of_file(folder / name) != sha256]
        manifest_sha256 = sha256_of_file(folder / MANIFEST)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(folder, error) from error
    if changed:
        raise _damaged(folder, f"{', '.join(changed)} changed since it was written")
    return manifest_sha256


def unreadable(folder: Path, error: Exception) -> CheckpointError:
    """Return what to raise where the content of a checked folder cannot be read."""
    return _damaged(folder, why_unread(error))


def write_text(path: Path, text: str) -> None:
    """Write a file of a folder that is being filled, and flush it."""
    path.write_text(text)
    flush(path)


def flush(path: Path) -> None:
    """Make the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} is not as it was written: {reason}",
        hint="Of a checkpoint: delete it, and the one before it, or the start, is used.",
    )


def _refused(target: Path, error: Exception) -> StorageError:
    is_full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    hint = "free some space, or point ORCH_ARTIFACTS at another disk; the job continues from the checkpoint before"
    reason = "the disk is full" if is_full else error
    return StorageError(f"cannot write {target}: {reason}", hint=hint if is_full else "")


def _write_manifest(folder: Path) -> str:
    sums = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())}
    write_text(folder / MANIFEST, json.dumps({"format": _FORMAT, "sha256": sums}, sort_keys=True))
    return sha256_of_file(folder / MANIFEST)
