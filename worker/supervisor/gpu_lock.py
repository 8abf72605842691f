"""A lock per GPU: one worker of a user on a host holds it, and it is released when the worker's process ends.

A worker locks the GPUs that it was given by name. `auto` locks none: the workers of `orch demo` share a GPU.
"""

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from orchestrator.errors import StateError, StorageError
from worker.devices import gpu_environ

_HOLDER = "pid"


def folder() -> Path:
    """Return the folder of the locks of this user on this host."""
    return Path(tempfile.gettempdir(), f"orch-{os.getuid()}")


def names(device: str, environ: Mapping[str, str]) -> list[str]:
    """Return the GPUs of a device by UUID, or by number where no UUID is known; none for a CPU and for `auto`."""
    own = gpu_environ("cuda:0" if device == "cuda" else device, environ).get("CUDA_VISIBLE_DEVICES", "")
    return [_uuid(word) or word for word in own.split(",") if word]


@contextmanager
def held(gpus: Sequence[str], folder: Path) -> Iterator[None]:
    """Hold the locks of GPUs.

    Raises:
        StateError: another worker holds one; says which GPU, and the worker's process.
        StorageError: the folder cannot be used.
    """
    with ExitStack() as stack:
        for name in sorted(gpus):
            _take(stack, name, folder / name.replace("/", "-"))
        yield


def _take(stack: ExitStack, name: str, place: Path) -> None:
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The folder itself is locked: a program that cleans temporary folders of old files leaves it then.
        lock = os.open(place, os.O_RDONLY)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (place / _HOLDER).write_text(str(os.getpid()))
    except BlockingIOError:
        raise StateError(
            f"GPU {name.removeprefix('GPU-')} is held by worker of pid {_holder(place)}",
            hint="One worker per GPU: stop that one, or name another device. orch worker --devices all takes them all.",
        ) from None
    except OSError as error:
        raise StorageError(f"{place}: {error.strerror}", hint="Set TMPDIR to a folder that may be written.") from None


def _holder(place: Path) -> str:
    try:
        return (place / _HOLDER).read_text() or "unknown"
    except OSError:
        return "unknown"


def _uuid(name: str) -> str:
    """Ask for the UUID of a GPU by number or UUID; empty where nvidia-smi does not know."""
    command = ["nvidia-smi", "-i", name, "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0] if said else ""
