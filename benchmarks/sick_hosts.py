"""Disks that fail under workers: each worker has a mount namespace, so that one host's disk can fail and no other's."""

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.worker_processes import WorkerProcess
from orchestrator.errors import ConfigError
from orchestrator.settings import Settings

OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
"""Before the command of a worker: only root may."""
_SHARED = ("-t", "tmpfs", "-o", "size=400m")
"""The artifacts that all hosts share: above the 0.2 GB that a worker wants free."""


class _Sick(NamedTuple):
    worker: WorkerProcess
    folder: Path
    until: float


class SickHosts:
    """Lets disks of single workers be read-only for a while, the shared one be full, and logs be lost."""

    def __init__(self, settings: Settings, chance: random.Random) -> None:
        self._settings, self._random = settings, chance
        self._sick: list[_Sick] = []
        self._full_until = 0.0

    def make_read_only(self, worker: WorkerProcess, folder: Path) -> bool:
        """Let one worker, and its trainer, no longer write to a folder for some seconds."""
        if any(sick.worker is worker for sick in self._sick):
            return False
        script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0"'
        done = _within(worker, "sh", "-c", script, str(folder))
        if done:
            self._sick.append(_Sick(worker, folder, time.monotonic() + self._random.uniform(0.5, 5)))
        return done

    def fill_the_disk(self) -> bool:
        """Fill the disk of the artifacts to its last byte, for some seconds."""
        if self._full_until:
            return False
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 10, 1):
                with suppress(OSError):
                    while file.write(b"\0" * size):
                        pass
        self._full_until = time.monotonic() + self._random.uniform(0.5, 3)
        return True

    def lose_logs(self) -> bool:
        """Delete every log of a trainer."""
        done = subprocess.run(["rm", "-rf", str(self._settings.logs_folder)], check=False)
        return done.returncode == 0

    @property
    def are_there(self) -> bool:
        return bool(self._sick) or bool(self._full_until)

    def tick(self) -> None:
        """Mend what was sick for long enough."""
        for sick in [*self._sick]:
            if time.monotonic() >= sick.until:
                self._sick.remove(sick)
                _within(sick.worker, "umount", "-l", str(sick.folder))  # one that was killed took its mounts along
        if self._full_until and time.monotonic() >= self._full_until:
            self._ballast.unlink()
            self._full_until = 0.0

    @property
    def _ballast(self) -> Path:
        return self._settings.artifacts_folder / "ballast"


def _within(worker: WorkerProcess, *command: str) -> bool:
    """Run a command among the mounts of a worker."""
    enter = ("nsenter", "--target", str(worker.process.pid), "--mount", "--")
    return subprocess.run([*enter, *command], capture_output=True, check=False).returncode == 0


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a small disk.

    Raises:
        ConfigError: it cannot be mounted here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *_SHARED, "none", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"no disk can be mounted: {done.stderr.strip()}", hint="Sick hosts need root, on Linux.")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
