"""A trainer process: a child in a session of its own, with JSON lines on its pipes, that can always be killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, NamedTuple

from orchestrator.processes.python_process import open_log
from worker.devices import gpu_environ
from worker.evaluation_order import EvaluationOrder
from worker.lens_order import LensOrder
from worker.protocol import DropJob, Exit, Failure, Idle, Order, Said, decode

_OWN, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_WITHHELD = ("ORCH_DATABASE_URL", "ORCH_BROKER_URL", "ORCH_TRACKING_URL", "MLFLOW_", "PG", "POSTGRES_", "REDIS")
"""Prefixes of variables withheld from a trainer: it opens no database, and may run code that comes with a model."""

_MOST_OF_A_MESSAGE = 1 << 24
"""Bytes; the pieces of a longer line are no messages."""
COMMAND = (sys.executable, "-P", "-m", "worker.trainer")
EVALUATION_COMMAND = (sys.executable, "-P", "-m", "worker.evaluation")
LENS_COMMAND = (sys.executable, "-P", "-m", "worker.lens_training")
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
"""Lets threads that wait for one another sleep: those that spin keep a busy machine from the one they wait for, and a
step took 15 to 40 times as long. The first is for GNU's OpenMP, which torch brings; the last for Intel's."""
AnyOrder = Order | EvaluationOrder | LensOrder
OOM_KILLED = Failure(
    "OutOfMemory",
    "the kernel's OOM killer ended its process: this host, or this container, has too little memory",
    "Give it more, or lower jobs_per_trainer or memory.",
    Exit.OUT_OF_MEMORY,
)


class Ending(NamedTuple):
    """What an exit status means for the job."""

    outcome: str
    text: str
    retry: bool


class TrainerProcess:
    """One trainer, or a process of another kind of jobs, which is spoken with in the same words.

    The thread that starts it must outlive it: the kernel kills it when that thread ends.
    """

    def __init__(self, order: AnyOrder, *, log: Path, command: Sequence[str] | None = None) -> None:
        """Start what carries the order out and hand it its order; what it prints goes to `log`."""
        self.log = log
        self.oom_killed = False
        self._oom_kills = oom_kills()
        self._messages: SimpleQueue[Said | None] = SimpleQueue()
        with open_log(log) as errors:
            self._child = subprocess.Popen(
                command or _command(order), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True, env=_environment(order),
            )  # fmt: skip
        self.pid = self._child.pid
        self.heard_at = time.monotonic()
        self.ended = False
        self.is_idle = False
        """Whether it has trained its jobs, and waits for an order to evaluate."""
        self._reader = threading.Thread(target=self._read, name=f"trainer-{self.pid}", daemon=True)
        self._reader.start()
        self._send(order.to_json())

    def next(self, timeout: float) -> Said | None:
        """Return the next message; None after `timeout` seconds, or at the end (`ended` or `is_idle` is then True)."""
        if self.ended:
            return None
        try:
            said = self._messages.get(timeout=max(0.0, timeout))
        except Empty:
            return None
        self.ended = said is None
        self.is_idle = said is not None and isinstance(said.message, Idle)
        self.heard_at = time.monotonic()
        return None if self.is_idle else said

    def evaluate(self, order: EvaluationOrder, *, log: Path) -> None:
        """Hand an idle process its next order; what it prints from then on goes to another log."""
        self.log, self.is_idle, self.heard_at = log, False, time.monotonic()
        self._send(replace(order, log=str(log)).to_json())

    @property
    def silent_seconds(self) -> float:
        """Return the seconds since the trainer last spoke."""
        return time.monotonic() - self.heard_at

    def drop(self, job_id: int, *, save: bool) -> None:
        """Ask the trainer to go on without a job, with `save` after a checkpoint of it."""
        self._send(DropJob(job_id, save).to_json())

    def terminate(self) -> None:
        """Ask the trainer to write a checkpoint and to end."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Ask the trainer to write the stacks of its threads to its log."""
        if hasattr(signal, "SIGUSR1"):
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """Kill the trainer and every process that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> int:
        """End the trainer and every process of it; return its exit status (negative: the signal that ended it)."""
        # It has closed its end of the pipe: give it time to exit by itself, so that the status is its own.
        if self.ended:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=10)
        self.kill()
        code = self._child.wait()
        self.oom_killed = code == -signal.SIGKILL and oom_kills() > self._oom_kills
        self._reader.join(timeout=5)
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()
        return code

    def _send(self, line: bytes) -> None:
        # The pipe stays open as long as the trainer runs: end of file means that the supervisor has ended.
        pipe = self._child.stdin
        assert pipe
        with suppress(BrokenPipeError):
            pipe.write(line)
            pipe.flush()

    def _read(self) -> None:
        lines: IO[bytes] | None = self._child.stdout
        assert lines
        with suppress(ValueError):  # `close` may close the pipe meanwhile
            while line := lines.readline(_MOST_OF_A_MESSAGE):
                if said := decode(line):
                    self._messages.put(said)
        self._messages.put(None)


def meaning(code: int) -> Ending:
    """Return what an exit status means for the job, when no result came with it."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        more = ": perhaps the machine ran out of memory" if -code == signal.SIGKILL else ""
        return Ending("crashed", f"its process was ended by {name}{more}", True)
    match code:
        case Exit.YIELDED:
            return Ending("preempted", "its process yielded", True)
        case Exit.MACHINE:
            return Ending("machine", "the machine could not do its work", True)
        case Exit.BAD_CONFIG:
            return Ending("bad_config", "its config cannot be run", False)
        case Exit.OUT_OF_MEMORY:
            return Ending("out_of_memory", "the device has too little memory for this job", True)
        case _:
            return Ending("failed", f"its process ended with exit status {code}", True)


def _command(order: AnyOrder) -> tuple[str, ...]:
    match order:
        case EvaluationOrder():
            return EVALUATION_COMMAND
        case LensOrder():
            return LENS_COMMAND
        case Order():
            return COMMAND


def _environment(order: AnyOrder) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(_WITHHELD)}
    # OpenMP reads its count when torch is imported; our packages are found from whatever folder we were started in.
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    counts = {"OMP_NUM_THREADS": str(order.threads), "MKL_NUM_THREADS": str(order.threads)}
    # Huge pages for torch's large blocks: the decoder's gradient at 16,384 x 768 took 6 instead of 20 ms.
    memory = {"THP_MEM_ALLOC_ENABLE": "1"}
    compiled = {"TORCHINDUCTOR_CACHE_DIR": order.compile_folder}
    # A text is tokenised on all threads: the standard library's in 3.7 s on two, in 6.0 on one.
    words = {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(order.threads)}
    own = {"PYTHONPATH": path, **counts, **words, **memory, **compiled}
    return {**SLEEPING_THREADS, **known, **gpu_environ(order.device, os.environ), **own}


def oom_kills(own: Path = _OWN, root: Path = _ROOT) -> int:
    """Return how many processes of our control group, v1 or v2, were killed for memory; 0 where it is not known."""
    for file in _counters(own, root):
        found = dict(line.split(" ", 1) for line in _read(file).splitlines() if " " in line).get("oom_kill", "")
        if found.strip().isdecimal():
            return int(found)
    return 0


def _counters(own: Path, root: Path) -> list[Path]:
    """Return the files that may hold the counter: of the group by its name, or, within a container, of the root."""
    files = []
    for line in _read(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if "memory" in controllers.split(","):
            files += [root / "memory" / part / "memory.oom_control" for part in (group.lstrip("/"), "")]
        elif not controllers:
            files += [root / part / "memory.events" for part in (group.lstrip("/"), "")]
    return files


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
