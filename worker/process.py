"""A trainer as the supervisor sees it: a child in a session of its own that talks in lines and can always be killed."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from worker.protocol import Exit, Message, Order, decode

COMMAND = (sys.executable, "-P", "-m", "worker.trainer")


class Ending(NamedTuple):
    """What an exit status means for the job."""

    outcome: str
    text: str
    retry: bool


class TrainerProcess:
    """One trainer. Start it from a thread that outlives it: its death signal follows that thread."""

    def __init__(self, order: Order, *, log: Path, command: Sequence[str] | None = None) -> None:
        """Start the trainer and hand it its order; what it prints goes to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                command or COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True, env=_environment(order.threads),
            )  # fmt: skip
        self.pid = self._child.pid
        self.heard_at = time.monotonic()
        self.ended = False
        self._reader = threading.Thread(target=self._read, name=f"trainer-{self.pid}", daemon=True)
        self._reader.start()
        self._give(order)

    def next(self, timeout: float) -> Message | None:
        """Return the next message; None after `timeout` seconds, or at the end (`ended` is then True)."""
        if self.ended:
            return None
        try:
            message = self._messages.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None
        self.ended = message is None
        self.heard_at = time.monotonic()
        return message

    @property
    def silent_seconds(self) -> float:
        """Return the seconds since the trainer last spoke."""
        return time.monotonic() - self.heard_at

    def terminate(self) -> None:
        """Ask the trainer to write a checkpoint and to end."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Ask the trainer to write down where each of its threads is."""
        if hasattr(signal, "SIGUSR1"):
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """Kill the trainer and whatever it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> int:
        """Leave nothing of the trainer behind, and return its exit status (negative: the signal that ended it)."""
        # Its end of the pipe is closed: a moment to leave by itself, so that the status is its own.
        if self.ended:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=10)
        self.kill()
        code = self._child.wait()
        self._reader.join(timeout=5)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()
        return code

    def _give(self, order: Order) -> None:
        # The pipe stays open for the trainer's life: its end of file tells the trainer that the supervisor is gone.
        pipe = self._child.stdin
        assert pipe
        with suppress(BrokenPipeError):
            pipe.write(order.to_json())
            pipe.flush()

    def _read(self) -> None:
        lines: IO[bytes] | None = self._child.stdout
        assert lines
        with suppress(ValueError):  # closed under our hands
            for line in lines:
                if message := decode(line):
                    self._messages.put(message)
        self._messages.put(None)


def meaning(code: int) -> Ending:
    """Return what an exit status means for the job, when no result came with it."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        more = ": perhaps the machine ran out of memory" if -code == signal.SIGKILL else ""
        return Ending("crashed", f"the trainer was ended by {name}{more}", True)
    match code:
        case Exit.YIELDED:
            return Ending("preempted", "the trainer wrote a checkpoint and yielded", True)
        case Exit.BAD_CONFIG:
            return Ending("bad_config", "the config cannot be trained", False)
        case Exit.OUT_OF_MEMORY:
            return Ending("out_of_memory", "the device has too little memory for this job", True)
        case _:
            return Ending("failed", f"the trainer ended with exit status {code}", True)


def _environment(threads: int) -> dict[str, str]:
    # OpenMP reads its count when torch is imported; our packages are found from whatever folder we were started in.
    here = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    counts = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return {**os.environ, **counts, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
