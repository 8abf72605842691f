"""How an attempt ends: with a result, a failure, or handed back; stored once, also over an outage of the database."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, func, select

from orchestrator import queue
from orchestrator.curves.lens_curve import LensResult
from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt as AttemptRow
from orchestrator.database.models import Job
from orchestrator.errors import SharedBy
from orchestrator.formatting import jobs_named
from orchestrator.settings import Settings
from worker.protocol import Ended, Evaluated, Exit, Failure
from worker.supervisor.health import Health
from worker.supervisor.idle_process import IdleProcess
from worker.supervisor.lease import HeldLease, Write
from worker.supervisor.log import Level, LogLine
from worker.supervisor.trainer_process import Ending, meaning

LOG_TAIL = 2000
BACKOFF_SHARE = 1 / 3
"""Of a lease: the first pause after a failure, 30 s with a lease of 90 s."""
STOPPED_PATIENCE_SECONDS = 10.0
"""For how long a worker that is told to stop waits for a database that is away."""

Say = Callable[[str], None]


class SupervisorContext(NamedTuple):
    """What the supervisor gives every attempt."""

    engine: Engine
    settings: Settings
    device: str
    threads: int
    say: Say
    changed: Callable[[int], None]
    """Called with the id of a job whose rows have changed."""
    tick: Callable[[], int]
    """Does the supervisor's housekeeping where it is due; returns how often this worker was told to stop."""
    health: Health
    idle: IdleProcess
    """The trainer that waits to evaluate what it has trained."""


class AttemptOutcome:
    """Stores how one attempt ended, once: now, or as soon as the database answers. Any method may raise LeaseLost."""

    def __init__(self, claim: queue.Claim, lease: HeldLease, context: SupervisorContext, say: Say) -> None:
        """Prepare to close the attempt that `lease` holds."""
        self._claim, self._lease, self._context, self._say = claim, lease, context, say
        self.is_decided = False
        """Whether an outcome has been given; it may still wait for the database."""

    def finish(self, ended: Ended) -> None:
        """Store the result."""
        result = queue.Result(**vars(ended))

        def finish(engine: Engine, lease: queue.Lease) -> None:
            queue.finish(engine, lease, result)
            self._say(f"{ended.outcome} after {ended.tokens_seen:,} tokens")

        self._context.health.served(self._lease.lease.job_id)
        self._write(finish)

    def finish_lens(self, result: LensResult) -> None:
        """Store the lens."""

        def finish(engine: Engine, lease: queue.Lease) -> None:
            queue.finish_lens(engine, lease, result)
            self._say(f"{result.outcome} after {result.tokens_seen:,} tokens")

        self._context.health.served(self._lease.lease.job_id)
        self._write(finish)

    def finish_evaluation(self, evaluated: Evaluated) -> None:
        """Store that every metric family has been tried."""

        def finish(engine: Engine, lease: queue.Lease) -> None:
            state = queue.finish_evaluation(engine, lease, evaluated.wall_seconds)
            level: Level = "info" if state == "succeeded" else "error"
            self._say(LogLine(f"evaluated in {evaluated.wall_seconds:.1f} s, now {state}", level=level))

        self._context.health.served(self._lease.lease.job_id)
        self._write(finish)

    def release(self, outcome: str) -> None:
        """Hand the job back."""

        def release(engine: Engine, lease: queue.Lease) -> None:
            self._say(f"released, now {queue.release(engine, lease, outcome=outcome)}")

        self._write(release)

    def fail(self, ending: Ending, *, exit_code: int | None, hint: str = "", shared_by: SharedBy = "") -> None:
        """Store a failure; the queue decides whether there is another attempt, and jobs that read the same fail too.

        A machine's failure is no job's: it is handed back.
        """
        if ending.outcome == "machine":
            self._hand_back(ending.text, hint)
            return

        def fail(engine: Engine, lease: queue.Lease) -> None:
            is_second = exit_code == Exit.OUT_OF_MEMORY and _ran_out_before(engine, lease.job_id)
            error = f"out of memory twice: {ending.text}" if is_second else ending.text
            state = queue.fail(
                engine, lease, error=f"{error}\n{hint}".strip(), exit_code=exit_code, outcome=ending.outcome,
                retry=ending.retry and not is_second,
                backoff_seconds=self._context.settings.lease_seconds * BACKOFF_SHARE,
            )  # fmt: skip
            why = f"{ending.text} ({hint})" if hint else ending.text
            self._say(
                LogLine(f"{ending.outcome}, now {state}: {why}", level="error" if state == "failed" else "warning")
            )
            if shared_by and state == "failed":
                self._fail_alike(engine, lease, why, shared_by)

        self._write(fail)

    def crash_in_company(self, code: int, log: Path, *, n_jobs: int) -> None:
        """Store that the trainer crashed with this job and others in it: whose fault it was nobody knows yet."""
        error = f"{meaning(code).text}\n{_tail(log)}".strip()

        def crash(engine: Engine, lease: queue.Lease) -> None:
            state = queue.crashed_in_company(engine, lease, error=error, exit_code=code, n_jobs=n_jobs)
            why = f"{meaning(code).text}; {n_jobs} jobs shared it, and half as many share the next"
            text = f"crashed, now {state}: {why}"
            self._say(LogLine(text, level="warning"))

        self._write(crash)

    def _fail_alike(self, engine: Engine, lease: queue.Lease, why: str, shared_by: SharedBy) -> None:
        key, config = self._claim.stream_key, self._claim.config
        if key is not None:
            subject = json.loads(config.subject.part_json) if shared_by == "place" else None
            ids = queue.fail_alike(engine, lease, stream_key=key, subject=subject, reason=why)
            if ids:
                self._say(LogLine(f"failed with it, for they read the same: {jobs_named(ids, most=8)}", level="error"))

    def fail_by_exit(self, code: int, failure: Failure | None, log: Path) -> None:
        """Store a failure by the exit status, with the trainer's own message or else the end of its log."""
        ending = meaning(code)
        text = failure.message if failure else f"{ending.text}\n{_tail(log)}".strip()
        hint, shared_by = (failure.hint, failure.shared_by) if failure else ("", "")
        self.fail(ending._replace(text=text), exit_code=code, hint=hint, shared_by=shared_by)

    def _hand_back(self, error: str, hint: str) -> None:
        def hand_back(engine: Engine, lease: queue.Lease) -> None:
            state = queue.hand_back(engine, lease, error=f"{error}\n{hint}".strip())
            self._say(LogLine(f"not the job's fault, now {state} for others: {error}", level="warning"))

        self._write(hand_back)

    def wait(self) -> None:
        """Wait until the outcome is stored, through an outage too, but not for ever once the worker is told to stop."""
        self._lease.settle(patience=self._patience)

    def _write(self, write: Write) -> None:
        self.is_decided = True
        self._lease.write(write)

    def _patience(self) -> bool:
        return not self._context.tick() or self._lease.away_seconds < STOPPED_PATIENCE_SECONDS


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
