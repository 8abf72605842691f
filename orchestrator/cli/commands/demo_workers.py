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

from orchestrator.cli.python_process import python_command, python_environment
from orchestrator.cli.terminal import note

TAIL_LINES = 12


class Member(NamedTuple):
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
        self._members: list[Member] = []

    def __enter__(self) -> Self:
        """Start the workers. Ctrl-C does not reach them by itself: they are told when we are."""
        self._logs.mkdir(parents=True, exist_ok=True)
        for number in range(1, self._size + 1):
            name = f"demo-{number}"
            log = self._logs / f"{name}.log"
            flags = ("--until-empty", "--name", name, *self._flags)
            with log.open("wb") as out:
                process = subprocess.Popen(
                    python_command("worker", *flags), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    env=python_environment(), start_new_session=True,
                )  # fmt: skip
            self._members.append(Member(name, process, log))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let the workers write their checkpoints and end; kill what does not."""
        if kind is KeyboardInterrupt and self.is_at_work:
            note("\nStopping: the workers write their checkpoints. (Ctrl-C again: do not wait for them.)")
        for member in self._members:
            with suppress(ProcessLookupError):
                member.process.send_signal(signal.SIGTERM)
        try:
            self.wait(self._grace)
        finally:
            for member in self._members:
                with suppress(ProcessLookupError):
                    if member.process.poll() is None:
                        os.killpg(member.process.pid, signal.SIGKILL)  # its trainer ends when it does
                member.process.wait()

    @property
    def is_at_work(self) -> bool:
        """Say whether a worker still runs."""
        return any(member.process.poll() is None for member in self._members)

    def wait(self, seconds: float) -> None:
        """Wait until all have ended, so long at most."""
        deadline = time.monotonic() + seconds
        while self.is_at_work and time.monotonic() < deadline:
            time.sleep(0.1)

    def dead(self) -> Sequence[Member]:
        """Return the workers that ended badly."""
        return [member for member in self._members if member.process.poll() not in (None, 0)]

    def last_words(self) -> str:
        """Return the end of the logs of those that ended badly, else of all."""
        told = []
        for member in self.dead() or self._members:
            lines = member.log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
            told.append("\n".join([f"{member.log}:", *(f"  {line}" for line in lines)]))
        return "\n".join(told)
