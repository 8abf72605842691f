"""The trainer's end of the line: order and wishes in, messages out, SIGTERM a flag; an end with the supervisor."""

import ctypes
import faulthandler
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType

from worker.protocol import Alive, DropJob, Exit, Message, Order, describe, encode

ALIVE_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


class SupervisorChannel:
    """What connects a trainer with its supervisor."""

    def __init__(self) -> None:
        """Take standard output for messages, so that a stray print cannot break them, and die with the parent."""
        die_with_parent()
        self._out = os.dup(1)
        os.dup2(2, 1)
        self.must_yield = False
        self._nothing_to_save = True
        self._lock = threading.Lock()
        self._spoke: dict[int | None, tuple[float, int]] = {None: (time.monotonic(), 0)}
        self._wishes: queue.SimpleQueue[DropJob] = queue.SimpleQueue()
        signal.signal(signal.SIGTERM, self._on_terminate)
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, all_threads=True)

    def order(self) -> Order:
        """Read the order, and from then on watch that the supervisor lives."""
        text = b""
        while b"\n" not in text:
            piece = os.read(0, 1 << 16)
            if not piece:
                os._exit(Exit.YIELDED)
            text += piece
        first, _, rest = text.partition(b"\n")
        threading.Thread(target=self._listen, args=(rest,), name="supervisor-watch", daemon=True).start()
        order = Order.from_json(first)
        if os.getppid() != order.supervisor:  # it was gone before the death signal was set
            os._exit(Exit.YIELDED)
        return order

    def wishes(self) -> list[DropJob]:
        """Return what the supervisor has wished since the last call."""
        found: list[DropJob] = []
        with suppress(queue.Empty):
            while True:
                found.append(self._wishes.get_nowait())
        return found

    def send(self, message: Message, job_id: int | None = None) -> None:
        """Write one message, of one job or of all, and tell the log about it."""
        if not isinstance(message, Alive):
            whose = "" if job_id is None else f"job {job_id}: "
            print(f"{time.strftime('%H:%M:%S')} {whose}{describe(message)}", file=sys.stderr, flush=True)
        left = memoryview(encode(message, job_id))
        with self._lock:
            while left:
                left = left[os.write(self._out, left) :]

    def alive(self, tokens_seen: int, job_id: int | None = None, *, phase: str = "training") -> None:
        """Say that the trainer moves, no more than once a second."""
        at, tokens = self._spoke[job_id]
        elapsed = time.monotonic() - at
        if elapsed >= ALIVE_SECONDS:
            self._spoke[job_id] = time.monotonic(), tokens_seen
            self.send(Alive(tokens_seen, max(0, tokens_seen - tokens) / elapsed, phase), job_id)

    def training_from(self, tokens_seen: Mapping[int, int]) -> None:
        """From now on there is something to save of these jobs: SIGTERM waits for the next step."""
        self._nothing_to_save = False
        self._spoke |= {job_id: (time.monotonic(), tokens) for job_id, tokens in tokens_seen.items()}

    def _on_terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self.must_yield = True
        if self._nothing_to_save:  # whatever is being written is written beside and renamed last
            os._exit(Exit.YIELDED)

    def _listen(self, text: bytes) -> None:
        """Keep wishes, and end the process when the supervisor's end closes: the way that works on every system."""
        while True:
            *lines, text = text.split(b"\n")
            for line in lines:
                self._wishes.put(DropJob.from_json(line))
            if not (piece := os.read(0, 1 << 10)):
                os._exit(Exit.YIELDED)
            text += piece


def die_with_parent() -> None:
    """Make the kernel end this process when the one that started it ends, where it can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
