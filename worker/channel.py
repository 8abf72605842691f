"""A child process's channel to its supervisor: order and drop requests in, messages out; the child ends with it."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TypeVar

from orchestrator.errors import OrchError
from orchestrator.processes.python_process import open_log
from worker.evaluation_order import EvaluationOrder
from worker.lens_order import LensOrder
from worker.protocol import Alive, DropJob, Exit, Failure, Idle, Message, Order, describe, encode
from worker.rate import Rate

ALIVE_SECONDS = 1.0
_AnyOrder = TypeVar("_AnyOrder", Order, EvaluationOrder, LensOrder)
_PR_SET_PDEATHSIG = 1


class SupervisorChannel:
    """What connects a process that runs jobs with its supervisor: pipes, and SIGTERM as the request to yield."""

    def __init__(self) -> None:
        """Reserve standard output for messages, so that no stray print mixes with them, and end with the parent."""
        die_with_parent()
        self._out = os.dup(1)
        os.dup2(2, 1)
        self.must_yield = False
        """Whether the supervisor asked the trainer to save and end."""
        self._nothing_to_save = True
        self._lock = threading.Lock()
        self._last_alive: dict[int | None, float] = {None: time.monotonic()}
        self._rates: dict[int | None, Rate] = {}
        self._drop_requests: SimpleQueue[DropJob] = SimpleQueue()
        self._next_orders: SimpleQueue[bytes] = SimpleQueue()
        signal.signal(signal.SIGTERM, self._on_terminate)
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, all_threads=True)

    def order(self, read: Callable[[bytes], _AnyOrder]) -> _AnyOrder:
        """Read the order, and from then on watch that the supervisor is alive."""
        text = b""
        while b"\n" not in text:
            piece = os.read(0, 1 << 16)
            if not piece:
                os._exit(Exit.YIELDED)
            text += piece
        first, _, rest = text.partition(b"\n")
        threading.Thread(target=self._listen, args=(rest,), name="supervisor-watch", daemon=True).start()
        order = read(first)
        if os.getppid() != order.supervisor:  # it was gone before the death signal was set
            os._exit(Exit.YIELDED)
        return order

    def next_order(self) -> EvaluationOrder | None:
        """Say that the jobs are trained, and wait for what is to be evaluated; None once the process was told to end.

        From then on nothing is left to save, and what is printed goes to the log of that order.
        """
        self._nothing_to_save = True
        if self.must_yield:
            return None
        self.drop_requests()
        self._last_alive, self._rates = {None: time.monotonic()}, {}
        self.send(Idle())
        order = EvaluationOrder.from_json(self._next_orders.get())
        with open_log(Path(order.log)) as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
        return order

    def drop_requests(self) -> list[DropJob]:
        """Return which jobs the supervisor has asked to drop since the last call."""
        found: list[DropJob] = []
        with suppress(Empty):
            while True:
                found.append(self._drop_requests.get_nowait())
        return found

    def send(self, message: Message, job_id: int | None = None) -> None:
        """Write one message, about one job or about all, and log it."""
        if not isinstance(message, Alive):
            about = "" if job_id is None else f"job {job_id}: "
            print(f"{time.strftime('%H:%M:%S')} {about}{describe(message)}", file=sys.stderr, flush=True)
        unsent = memoryview(encode(message, job_id))
        with self._lock:
            while unsent:
                unsent = unsent[os.write(self._out, unsent) :]

    def alive(self, tokens_seen: int, job_id: int | None = None, *, phase: str = "training") -> None:
        """Report progress, at most once a second."""
        now = time.monotonic()
        if now - self._last_alive.get(job_id, float("-inf")) >= ALIVE_SECONDS:
            self._last_alive[job_id] = now
            rate = self._rates.setdefault(job_id, Rate()).at(now, tokens_seen)
            self.send(Alive(tokens_seen, rate, phase), job_id)

    def training_from(self, tokens_seen: Mapping[int, int]) -> None:
        """Note that training starts at these positions: from now on SIGTERM waits for the next step, which saves."""
        self._nothing_to_save = False
        self._last_alive |= dict.fromkeys(tokens_seen, time.monotonic())
        self._rates.clear()

    def _on_terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self.must_yield = True
        if self._nothing_to_save:  # a file that is being written is still beside its place
            os._exit(Exit.YIELDED)

    def _listen(self, text: bytes) -> None:
        """Collect what the supervisor sends; end this process when its end of the pipe is closed, or it dies."""
        while True:
            *lines, text = text.split(b"\n")
            for line in lines:
                if b'"jobs":' in line:
                    self._next_orders.put(line)
                else:
                    self._drop_requests.put(DropJob.from_json(line))
            piece = os.read(0, 1 << 10)
            if not piece:
                os._exit(Exit.YIELDED)
            text += piece


def carried_out(channel: SupervisorChannel, work: Callable[[], int]) -> int:
    """Do the work of a child process; whatever it raises is reported to its supervisor. Return the exit status."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported to the supervisor
        if not isinstance(error, OrchError):  # what a person can mend has a message, which is logged as it is sent
            traceback.print_exc()
        failure = Failure.of(error)
        with suppress(OSError):
            channel.send(failure)
        return failure.code


def die_with_parent() -> None:
    """Make the kernel end this process when its parent ends; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
