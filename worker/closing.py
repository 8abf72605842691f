"""The last write of an attempt: a result, a failure, or the job handed back."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, func, select

from orchestrator import queue
from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt as AttemptRow
from orchestrator.database.models import Job
from orchestrator.settings import Settings
from worker.lease import HeldLease, Write
from worker.process import Ending, meaning
from worker.protocol import Ended, Exit, Failure
from worker.voice import Remark

LOG_TAIL = 2000
BACKOFF_SHARE = 1 / 3
"""First pause after a failure, in leases: 30 s with the lease of 90 s."""
STOPPED_PATIENCE_SECONDS = 10.0
"""For how long a worker that is told to stop waits for a database that is away."""


class Surroundings(NamedTuple):
    """What the supervisor gives every attempt."""

    engine: Engine
    settings: Settings
    device: str
    threads: int
    say: Callable[[str], None]
    changed: Callable[[int], None]
    """Takes the id of a job of which there is something new."""
    tick: Callable[[], int]
    """Does the supervisor's other duties; returns how often it was told to stop."""


class Closing:
    """Closes one attempt, once: at once, or as soon as the database answers. Every method may raise LeaseLost."""

    def __init__(self, lease: HeldLease, around: Surroundings, say: Callable[[str], None]) -> None:
        """Prepare to close what `lease` holds."""
        self._lease, self._around, self._say = lease, around, say
        self.begun = False

    def finish(self, ended: Ended) -> None:
        """Store the result."""
        result = queue.Result(**vars(ended))

        def finish(engine: Engine, lease: queue.Lease) -> None:
            queue.finish(engine, lease, result)
            self._say(f"{ended.outcome} after {ended.tokens_seen:,} tokens")

        self._write(finish)

    def release(self, outcome: str) -> None:
        """Hand the job back."""

        def release(engine: Engine, lease: queue.Lease) -> None:
            self._say(f"released, now {queue.release(engine, lease, outcome=outcome)}")

        self._write(release)

    def fail(self, ending: Ending, *, exit_code: int | None, hint: str = "") -> None:
        """Store a failure; the queue decides whether there is another attempt."""

        def fail(engine: Engine, lease: queue.Lease) -> None:
            is_second = exit_code == Exit.OUT_OF_MEMORY and _ran_out_before(engine, lease.job_id)
            told = f"out of memory twice: {ending.text}" if is_second else ending.text
            state = queue.fail(
                engine, lease, error=f"{told}\n{hint}".strip(), exit_code=exit_code, outcome=ending.outcome,
                retry=ending.retry and not is_second,
                backoff_seconds=self._around.settings.lease_seconds * BACKOFF_SHARE,
            )  # fmt: skip
            why = f"{ending.text} ({hint})" if hint else ending.text
            self._say(
                Remark(f"{ending.outcome}, now {state}: {why}", level="error" if state == "failed" else "warning")
            )

        self._write(fail)

    def fail_by_exit(self, code: int, failure: Failure | None, log: Path) -> None:
        """Store what an exit status, the trainer's last words and its log tell."""
        ending = meaning(code)
        said = failure.message if failure else f"{ending.text}\n{_tail(log)}".strip()
        self.fail(ending._replace(text=said), exit_code=code, hint=failure.hint if failure else "")

    def wait(self) -> None:
        """Wait until the end is written, over an outage too, but not for ever once the worker is told to stop."""
        self._lease.settle(patience=self._patience)

    def _write(self, write: Write) -> None:
        self.begun = True
        self._lease.write(write)

    def _patience(self) -> bool:
        return not self._around.tick() or self._lease.away_seconds < STOPPED_PATIENCE_SECONDS


def _ran_out_before(engine: Engine, job_id: int) -> bool:
    """Say whether an attempt since the last `orch retry`, which forgives failures, ran out of memory."""
    ran_out = (AttemptRow.job_id == job_id, AttemptRow.outcome == "out_of_memory")
    earlier = select(func.count()).select_from(AttemptRow).join(Job, Job.id == AttemptRow.job_id)
    with reading(engine) as session:
        return bool(session.scalar(earlier.where(*ran_out, Job.failures > 0)))


def _tail(log: Path) -> str:
    try:
        return log.read_bytes()[-LOG_TAIL:].decode(errors="replace").strip()
    except OSError:
        return ""
