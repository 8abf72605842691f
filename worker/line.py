"""The trainer's end of the line: its order in, messages out, SIGTERM as a flag, and an end when the supervisor ends."""

import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
from types import FrameType

from worker.protocol import Alive, Exit, Message, Order, describe, encode

ALIVE_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


class Line:
    """What connects a trainer with its supervisor."""

    def __init__(self) -> None:
        """Take standard output for messages, so that a stray print cannot break them, and die with the parent."""
        _die_with_parent()
        self._out = os.dup(1)
        os.dup2(2, 1)
        self.must_yield = False
        self._nothing_to_save = True
        self._lock = threading.Lock()
        self._spoke_at, self._spoke_tokens = time.monotonic(), 0
        signal.signal(signal.SIGTERM, self._on_terminate)
        if hasattr(signal, "SIGUSR1"):
            faulthandler.register(signal.SIGUSR1, all_threads=True)

    def order(self) -> Order:
        """Read the order, and from then on watch that the supervisor lives."""
        text = b""
        while not text.endswith(b"\n"):
            # One byte more than the line would be one byte too many only if the supervisor spoke twice; it does not.
            piece = os.read(0, 1 << 16)
            if not piece:
                os._exit(Exit.YIELDED)
            text += piece
        threading.Thread(target=_end_with_input, name="supervisor-watch", daemon=True).start()
        order = Order.from_json(text)
        if os.getppid() != order.supervisor:  # it was gone before the death signal was set
            os._exit(Exit.YIELDED)
        return order

    def send(self, message: Message) -> None:
        """Write one message, and tell the log about it."""
        if not isinstance(message, Alive):
            print(time.strftime("%H:%M:%S"), describe(message), file=sys.stderr, flush=True)
        left = memoryview(encode(message))
        with self._lock:
            while left:
                left = left[os.write(self._out, left) :]

    def alive(self, tokens_seen: int, *, phase: str = "training") -> None:
        """Say that the trainer moves, no more than once a second."""
        elapsed = time.monotonic() - self._spoke_at
        if elapsed >= ALIVE_SECONDS:
            rate = max(0, tokens_seen - self._spoke_tokens) / elapsed
            self._spoke_at, self._spoke_tokens = time.monotonic(), tokens_seen
            self.send(Alive(tokens_seen, rate, phase))

    def training_from(self, tokens_seen: int) -> None:
        """From now on there is something to save: SIGTERM waits for the next step."""
        self._nothing_to_save = False
        self._spoke_at, self._spoke_tokens = time.monotonic(), tokens_seen

    def _on_terminate(self, _signal: int, _frame: FrameType | None) -> None:
        self.must_yield = True
        if self._nothing_to_save:  # whatever is being written is written beside and renamed last
            os._exit(Exit.YIELDED)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end_with_input() -> None:
    """End the process when the supervisor's end of standard input closes: the way that works on every system."""
    while os.read(0, 1 << 10):
        pass
    os._exit(Exit.YIELDED)
