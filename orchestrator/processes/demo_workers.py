"""The workers that `orch demo` starts, and ends."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from orchestrator.processes.python_process import open_log, python_command, python_environment

TAIL_LINES = 12


class DemoWorker(NamedTuple):
    """One worker process."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path


class DemoWorkers:
    """Worker processes, each with its log; all of them are gone when the block ends."""

    def __init__(self, logs: Path, *, size: int, threads: int, jobs: int, grace_seconds: float) -> None:
        """Prepare `size` workers whose trainers use `threads` threads each, for up to `jobs` jobs."""
        self._logs, self._size, self._grace = logs, size, grace_seconds
        self._flags = ("--threads", str(threads), "--jobs", str(jobs))
        self._workers: list[DemoWorker] = []

    def __enter__(self) -> Self:
        """Start the workers, each in a session of its own: Ctrl-C reaches them through `__exit__` alone."""
        for number in range(1, self._size + 1):
            name = f"demo-{number}"
            log = self._logs / f"{name}.log"
            flags = ("--until-empty", "--name", name, *self._flags)
            with suppress(OSError):
                log.unlink(missing_ok=True)
            with open_log(log) as out:
                process = subprocess.Popen(
                    python_command("worker", *flags), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    env=python_environment(), start_new_session=True,
                )  # fmt: skip
            self._workers.append(DemoWorker(name, process, log))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the workers write their checkpoints and end; kill those that do not."""
        for worker in self._workers:
            with suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGTERM)
        try:
            self.wait(self._grace)
        finally:
            for worker in self._workers:
                with suppress(ProcessLookupError):
                    if worker.process.poll() is None:
                        os.killpg(worker.process.pid, signal.SIGKILL)  # its trainer ends when it does
                worker.process.wait()

    @property
    def are_running(self) -> bool:
        """Say whether a worker still runs."""
        return any(worker.process.poll() is None for worker in self._workers)

    def wait(self, seconds: float) -> None:
        """Wait until all have ended, for so many seconds at most."""
        deadline = time.monotonic() + seconds
        while self.are_running and time.monotonic() < deadline:
            time.sleep(0.1)

    def failed(self) -> Sequence[DemoWorker]:
        """Return the workers that ended with another exit status than 0."""
        return [worker for worker in self._workers if worker.process.poll() not in (None, 0)]

    def log_tails(self) -> str:
        """Return the end of the logs of those that failed, else of all."""
        tails = []
        for worker in self.failed() or self._workers:
            lines = _lines(worker.log)[-TAIL_LINES:]
            tails.append("\n".join([f"{worker.log}:", *(f"  {line}" for line in lines)]))
        return "\n".join(tails)


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
