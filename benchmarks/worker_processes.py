"""Workers as processes that are killed, frozen and replaced; each start has a name of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil


class Hand:
    """One worker process."""

    def __init__(self, name: str, module: str, *, environ: Mapping[str, str], log: Path) -> None:
        self.name, self._log = name, log
        self._seeing_since: float | None = None
        self.frozen_until: float | None = None
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", module, "--threads", "1", "--device", "cpu", "--name", name],
                env={**os.environ, **environ}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip

    @property
    def is_up(self) -> bool:
        return self.process.poll() is None and self.frozen_until is None

    @property
    def trainer(self) -> psutil.Process | None:
        """Return its trainer, if it has one."""
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                if "trainer" in " ".join(child.cmdline()) and not is_gone(child):
                    return child
        return None

    def has_seen_for(self, seconds: float, *, since: float) -> bool:
        """Say whether it has looked at the queue for so long without a break; `since` begins anew."""
        if self._seeing_since is None and f"worker {self.name} on " in self._log.read_text():
            self._seeing_since = time.time()
        return self.is_up and self._seeing_since is not None and time.time() - max(since, self._seeing_since) > seconds

    def freeze(self, seconds: float) -> None:
        self.frozen_until = time.time() + seconds
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self, *, now: bool = False) -> None:
        """Let it go on when its time has come."""
        if self.frozen_until is not None and (now or time.time() >= self.frozen_until):
            self.frozen_until, self._seeing_since = None, time.time()
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Crew:
    """As many workers as there are places; whoever has ended is replaced."""

    def __init__(self, size: int, module: str, *, environ: Mapping[str, str], logs: Path) -> None:
        self._module, self._environ, self._logs = module, environ, logs
        logs.mkdir()
        self._started = 0
        self.ended: list[int] = []
        """Exit statuses of those who ended by themselves."""
        self.hands = [self._start() for _ in range(size)]

    def tick(self) -> None:
        """Thaw whose time has come, and replace whoever is gone."""
        for place, hand in enumerate(self.hands):
            hand.thaw()
            code = hand.process.poll()
            if code is not None:
                if code >= 0:
                    self.ended.append(code)
                self.hands[place] = self._start()

    def judges(self, seconds: float, *, since: float) -> list[Hand]:
        """Return those who have looked long enough to judge the leases of others."""
        return [hand for hand in self.hands if hand.has_seen_for(seconds, since=since)]

    def stop(self) -> None:
        """Let all of them go home."""
        for hand in self.hands:
            hand.thaw(now=True)
            hand.process.terminate()
        for hand in self.hands:
            try:
                hand.process.wait(30)
            except subprocess.TimeoutExpired:
                hand.kill()

    def close(self) -> None:
        """Leave no process behind."""
        for hand in self.hands:
            if hand.process.poll() is None:
                hand.kill()

    def _start(self) -> Hand:
        self._started += 1
        name = f"w{self._started}"
        return Hand(name, self._module, environ=self._environ, log=self._logs / name)


def is_gone(process: psutil.Process) -> bool:
    """Say whether a process has ended; a zombie has."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
