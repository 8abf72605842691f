"""`orch worker --devices`: a worker process per device, started together, restarted when it dies, stopped together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from types import FrameType
from typing import NamedTuple

from orchestrator.errors import ConfigError, StateError
from orchestrator.formatting import named

TICK_SECONDS = 0.2
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0
"""Before a worker that died is started again: doubled with every death in a row."""
MOST_DEATHS = 6
"""In a row; then its device is left alone."""
CALM_SECONDS = 600.0
"""A worker that lived so long has had no death before."""
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ENDED_ON_PURPOSE = (0, ConfigError.exit_code, StateError.exit_code, 130)


class Slot(NamedTuple):
    """The device of one worker, and its label."""

    label: str
    """Before each of its lines, and in its name: gpu0, cpu1, gpu0+gpu1."""
    device: str


class WorkerProcess:
    """The worker process of one slot, started again when it dies."""

    def __init__(self, slot: Slot, command: Sequence[str], say: Callable[[str], None]) -> None:
        """Start it."""
        self.slot, self._command, self._say = slot, command, say
        self._deaths, self._status = 0, 0
        self._start_at = 0.0
        self._child: subprocess.Popen[bytes] | None = None
        self._start()

    @property
    def status(self) -> int:
        """Return how it last ended, as a shell says it."""
        return self._status if self._status >= 0 else 128 - self._status

    def is_over(self, *, stopping: bool) -> bool:
        """Start it again if it died and may be started; say whether it has ended for good."""
        if self._child is not None:
            found = self._child.poll()
            if found is None:
                return False
            self._ended(found, stopping=stopping)
        if stopping or self._start_at == float("inf"):
            return True
        if time.monotonic() >= self._start_at:
            self._start()
        return False

    def send(self, number: int) -> None:
        """Forward a signal."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def _start(self) -> None:
        self._started_at = time.monotonic()
        # A session of its own: Ctrl-C reaches it once, through us. Its input is a pipe that ends when we end.
        try:
            self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE, start_new_session=True)
        except OSError as error:  # the machine may have no process or memory to spare at the moment
            self._status = 1
            self._died(f"did not start: {error.strerror}")

    def _ended(self, status: int, *, stopping: bool) -> None:
        assert self._child is not None
        if self._child.stdin:
            self._child.stdin.close()
        self._child, self._status = None, status
        if stopping or status in _ENDED_ON_PURPOSE:
            self._start_at = float("inf")
            return
        self._died(f"was ended by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}")

    def _died(self, how: str) -> None:
        lived = time.monotonic() - self._started_at
        self._deaths = 1 if lived > CALM_SECONDS else self._deaths + 1
        if self._deaths >= MOST_DEATHS:
            self._start_at = float("inf")
            self._say(f"worker {self.slot.label} {how}, the {self._deaths}th time in a row: it is given up")
            return
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (self._deaths - 1))
        self._start_at = time.monotonic() + pause
        self._say(f"worker {self.slot.label} {how}; it starts again in {pause:g} s")


class Fleet:
    """The workers of one machine. It claims nothing itself."""

    def __init__(self, devices: Sequence[str], say: Callable[[str], None]) -> None:
        """Prepare; `run` starts the workers."""
        self._slots, self._say = [*_slots(devices)], say
        # SimpleQueue.put may be called from a signal handler.
        self._received: SimpleQueue[int] = SimpleQueue()
        self._stopping = False

    def run(self, *, name: str, threads: int, flags: Sequence[str] = ()) -> int:
        """Start a worker per device, and return the worst of their exit statuses when all have ended."""
        for number in _FORWARDED:
            signal.signal(number, self._on_signal)
        with_threads = f"{named(len(self._slots), 'worker')} with {named(threads, 'thread')} each"
        self._say(f"{with_threads}: {', '.join(slot.label for slot in self._slots)}")
        workers: list[WorkerProcess] = []
        try:
            for slot in self._slots:
                own = ("--device", slot.device, "--label", slot.label, "--name", f"{name}-{slot.label}")
                command = (sys.executable, "-P", "-m", "worker", *own, "--threads", str(threads), *flags)
                workers.append(WorkerProcess(slot, command, self._say))
            while not all(self._are_over(workers)):
                self._forward(workers)
            return max(worker.status for worker in workers)
        finally:
            for worker in workers:
                worker.kill()

    def _are_over(self, workers: Sequence[WorkerProcess]) -> list[bool]:
        return [worker.is_over(stopping=self._stopping) for worker in workers]

    def _forward(self, workers: Sequence[WorkerProcess]) -> None:
        """Wait a moment, and forward each signal that came once to each worker."""
        try:
            number = self._received.get(timeout=TICK_SECONDS)
        except Empty:
            return
        self._stopping = True
        for worker in workers:
            worker.send(number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._received.put(number)


def end_with_fleet() -> None:
    """Send SIGTERM to this process when the fleet's process has ended; for a thread of a worker."""
    while os.read(0, 1 << 10):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _slots(devices: Sequence[str]) -> list[Slot]:
    """Return a label for every device: CPUs are counted, GPUs have numbers."""
    slots, n_cpus = [], 0
    for device in devices:
        words = []
        for part in device.split("+"):
            if part == "cpu":
                n_cpus += 1
                words.append(f"cpu{n_cpus}")
            else:
                words.append(part.replace("cuda:", "gpu"))
        slots.append(Slot("+".join(words), device))
    return slots


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
