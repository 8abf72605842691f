"""`python -m tests.faults.crashing`: an ordinary worker with a fault, which the environment names.

ORCH_CRASH_AT=before_claim_commit   the process gets ORCH_CRASH_SIGNAL (SIGKILL) at the first commit of that verb of
                                    the queue, before or after it is carried out
ORCH_TRAINER=tests.faults.quick     another module is the trainer
ORCH_GPU=GPU-1                      what `--device cpu` is taken for when the slot of a GPU is asked for
ORCH_OOM_KILLS=/a/file              holds what the kernel is said to have counted
ORCH_PATIENCE_SECONDS=4 for how long an answer of PostgreSQL is waited for
ORCH_NO_NAMES=/a/file               once it is there, a host's name is looked for 8 s and not found, as that of a
                                    container that is gone
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from orchestrator import queue
from orchestrator.database.answering import Patience
from worker import __main__ as program
from worker.supervisor import gpu_lock, trainer_process

VERBS = ("claim", "begin", "heartbeat", "record", "checkpointed", "finish", "release", "fail")
POINTS = tuple(f"{when}_{verb}_commit" for verb in VERBS for when in ("before", "after"))


def crash_at(point: str, number: signal.Signals) -> None:
    """Let this process get a signal at a point, once."""
    when, verb, _ = point.split("_")
    saying: list[str] = []

    def named(call: Callable[..., Any]) -> Callable[..., Any]:
        def spoken(*arguments: Any, **named: Any) -> Any:
            saying.append(call.__name__)
            try:
                return call(*arguments, **named)
            finally:
                saying.pop()

        return spoken

    def reached(_: Session) -> None:
        visited = Path(os.environ["ORCH_HOME"], f"{point}.visited")
        if saying[-1:] == [verb] and not visited.exists():
            visited.touch()
            os.kill(os.getpid(), number)

    setattr(queue, verb, named(getattr(queue, verb)))
    event.listen(Session, f"{when}_commit", reached)


def lose_names(sign: Path) -> None:
    """Let no name be resolved once a file is there."""
    look_up = socket.getaddrinfo

    def resolve(*arguments: Any, **named: Any) -> Any:
        if sign.exists():
            time.sleep(8)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look_up(*arguments, **named)

    vars(socket)["getaddrinfo"] = resolve


def oom_kills(counter: Path) -> int:
    return int(counter.read_text())


if __name__ == "__main__":
    if place := os.environ.get("ORCH_CRASH_AT"):
        crash_at(place, signal.Signals[os.environ.get("ORCH_CRASH_SIGNAL", "SIGKILL")])
    if trainer := os.environ.get("ORCH_TRAINER"):
        trainer_process.COMMAND = (sys.executable, "-P", "-m", trainer)
    if gpu := os.environ.get("ORCH_GPU"):
        gpu_lock.names = lambda *_: [gpu]
    if sign := os.environ.get("ORCH_NO_NAMES"):
        lose_names(Path(sign))
    if seconds := os.environ.get("ORCH_PATIENCE_SECONDS"):
        Patience.seconds = float(seconds)
    if counter := os.environ.get("ORCH_OOM_KILLS"):
        vars(trainer_process)["oom_kills"] = partial(oom_kills, Path(counter))
    sys.exit(program.main())
