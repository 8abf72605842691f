"""Workers as processes that are killed, frozen and replaced; each start gets a new name."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil


class WorkerProcess:
    """One worker process."""

    def __init__(
        self, name: str, module: str, *, environ: Mapping[str, str], log: Path, before: Sequence[str] = ()
    ) -> None:
        """Start it; `before` goes before its command, and becomes it."""
        self.name, self._log = name, log
        self._polling_since: float | None = None
        self.frozen_until: float | None = None
        command = [sys.executable, "-W", "ignore", "-m", module, "--threads", "1", "--device", "cpu", "--name", name]
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*before, *command],
                env={**os.environ, **environ}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    @property
    def is_up(self) -> bool:
        return self.process.poll() is None and self.frozen_until is None

    @property
    def trainer(self) -> psutil.Process | None:
        """Return its trainer or its evaluation, if it has one."""
        return self.child("trainer") or self.child("evaluation")

    def child(self, what: str) -> psutil.Process | None:
        """Return its trainer, or its evaluation, if it has one."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                if what in " ".join(child.cmdline()) and not is_gone(child):
                    return child
        return None

    def has_polled_for(self, seconds: float, *, since: float) -> bool:
        """Say whether it has polled the queue without a break for so many seconds, counted from `since` on."""
        if self._polling_since is None and f"worker {self.name} on " in self._log.read_text():
            self._polling_since = time.time()
        return (
            self.is_up and self._polling_since is not None and time.time() - max(since, self._polling_since) > seconds
        )

    def freeze(self, seconds: float) -> None:
        self.frozen_until = time.time() + seconds
        self.process.send_signal(signal.SIGSTOP)

    def resume(self, *, now: bool = False) -> None:
        """Resume it when it was frozen for long enough."""
        if self.frozen_until is not None and (now or time.time() >= self.frozen_until):
            self.frozen_until, self._polling_since = None, time.time()
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class WorkerProcesses:
    """A fixed number of workers; one that has ended is replaced."""

    def __init__(
        self, size: int, module: str, *, environ: Mapping[str, str], logs: Path, before: Sequence[str] = ()
    ) -> None:
        self._module, self._environ, self._logs, self._before = module, environ, logs, before
        logs.mkdir()
        self._started = 0
        self.ended: list[int] = []
        """Exit statuses of workers that ended by themselves."""
        self.workers = [self._start() for _ in range(size)]

    def tick(self) -> None:
        """Resume the workers that were frozen for long enough, and replace those that have ended."""
        for at, worker in enumerate(self.workers):
            worker.resume()
            code = worker.process.poll()
            if code is not None:
                if code >= 0:
                    self.ended.append(code)
                self.workers[at] = self._start()

    def polling_for(self, seconds: float, *, since: float) -> list[WorkerProcess]:
        """Return the workers that have polled for long enough to release expired leases of others."""
        return [worker for worker in self.workers if worker.has_polled_for(seconds, since=since)]

    def stop(self) -> None:
        """Stop all workers: SIGTERM, then SIGKILL."""
        for worker in self.workers:
            worker.resume(now=True)
            worker.process.terminate()
        for worker in self.workers:
            try:
                worker.process.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()

    def close(self) -> None:
        """Kill what still runs."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()

    def _start(self) -> WorkerProcess:
        self._started += 1
        name = f"w{self._started}"
        return WorkerProcess(name, self._module, environ=self._environ, log=self._logs / name, before=self._before)


def is_gone(process: psutil.Process) -> bool:
    """Say whether a process has ended; a zombie has."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
