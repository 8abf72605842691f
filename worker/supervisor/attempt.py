"""One attempt, from the claim to its end: what the trainer says of it is written down, under its own lease."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from sqlalchemy import Engine, func, select

from orchestrator import queue
from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt as AttemptRow
from orchestrator.database.models import Job
from orchestrator.settings import Settings
from worker.protocol import (
    Alive,
    Assignment,
    CurvePointMessage,
    Ended,
    Exit,
    Failure,
    Left,
    Message,
    Saved,
    Started,
    describe,
)
from worker.supervisor import attempt
from worker.supervisor.lease import HeldLease, Status, Write
from worker.supervisor.log import LogLine
from worker.supervisor.trainer_process import Ending, meaning

LOG_TAIL = 2000
BACKOFF_SHARE = 1 / 3
"""First pause after a failure, in leases: 30 s with the lease of 90 s."""
STOPPED_PATIENCE_SECONDS = 10.0
"""For how long a worker that is told to stop waits for a database that is away."""


class SupervisorContext(NamedTuple):
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


class AttemptOutcome:
    """Closes one attempt, once: at once, or as soon as the database answers. Every method may raise LeaseLost."""

    def __init__(self, lease: HeldLease, around: SupervisorContext, say: Callable[[str], None]) -> None:
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
                LogLine(f"{ending.outcome}, now {state}: {why}", level="error" if state == "failed" else "warning")
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


Stop = Literal["shutdown", "pause", "cancel", "outage", "stalled"]
_OUTCOMES = {"pause": "paused", "cancel": "cancelled"}


class Attempt:
    """A claimed job while this worker has it. Its methods may raise LeaseLost: then it is nobody's business here."""

    def __init__(self, claim: queue.Claim, around: SupervisorContext) -> None:
        """Take over a claim."""
        self._claim, self._around = claim, around
        self.lease = HeldLease(around.engine, claim.lease, around.settings)
        self.closing = AttemptOutcome(self.lease, around, self.say)
        self.stop: Stop | None = None
        self.has_begun = False
        self._status = Status()
        self._stored_tokens: int | None = None
        again = f" attempt {claim.lease.attempt}" if claim.lease.attempt > 1 else ""
        self._name = f"job {claim.lease.job_id}{again}"

    @property
    def job_id(self) -> int:
        """Return the job's id."""
        return self._claim.lease.job_id

    @property
    def is_over(self) -> bool:
        """Say whether its end is written."""
        return self.closing.begun and self.lease.is_written

    @property
    def log(self) -> Path:
        """Return where the trainer's log of this attempt is looked for."""
        lease = self._claim.lease
        return self._around.settings.log_file(lease.job_id, lease.attempt)

    def assignment(self) -> Assignment:
        """Return what the trainer is told of this attempt."""
        lease = self._claim.lease
        return Assignment(
            job_id=lease.job_id,
            attempt=lease.attempt,
            config=self._claim.config,
            artifacts=str(self._around.settings.artifacts_folder / str(lease.job_id) / str(lease.attempt)),
            resume=tuple(Saved(c.uri, c.tokens_seen, c.sha256) for c in self._claim.checkpoints),
        )

    def introduce(self, pid: int) -> None:
        """Say that a trainer has it."""
        sae = self._claim.config.sae
        size = f"n={sae.n_latents}" if sae.n_latents else f"n={sae.expansion or 8}·d_model"
        self.say(f"{self._claim.sweep}, {size} k={sae.k}, trainer {pid}")

    def hear(self, message: Message) -> None:
        """Write down what the trainer says; its end, too."""
        match message:
            case Started(tokens_seen, facts):
                self.has_begun, self._status = True, Status(tokens_seen)
                self.lease.write(lambda engine, lease: queue.begin(engine, lease, facts, tokens_seen))
            case Alive(tokens_seen, rate):
                self._status = self._status._replace(tokens_seen=tokens_seen, tokens_per_second=rate)
            case CurvePointMessage(point):
                self._status = self._status._replace(tokens_seen=point.tokens_seen, fvu=point.fvu)
                self.lease.write(lambda engine, lease: queue.record(engine, lease, [point]))
            case Saved(uri, tokens_seen, sha256):
                self._status = self._status._replace(tokens_seen=max(tokens_seen, self._status.tokens_seen))
                ref = queue.CheckpointRef(uri=uri, tokens_seen=tokens_seen, sha256=sha256)
                self.lease.write(lambda engine, lease: self._acknowledge(engine, lease, ref))
            case Ended():
                self.closing.finish(message)
            case Left():
                self.release()
            case Failure(_, text, hint, code):
                self.closing.fail(meaning(code)._replace(text=text), exit_code=code, hint=hint)
        if isinstance(message, Started | CurvePointMessage):
            self.say(describe(message))
            self._around.changed(self.job_id)

    def beat(self) -> queue.Desired:
        """Renew the lease if it is time to, and return what the person wants."""
        desired = self.lease.beat(self._status)
        self.lease.flush()
        return desired

    def release(self) -> None:
        """Hand the job back, as it was asked for."""
        self.closing.release(_OUTCOMES.get(self.stop or "", "preempted"))

    def settle(self, code: int, failure: Failure | None, log: Path) -> None:
        """Write down how the attempt ended when its trainer did; what was written before stands."""
        if not self.closing.begun:
            if self.stop == "stalled":
                text = (
                    f"no word from the trainer for {self._around.settings.stall_seconds:g} s; its stacks are in {log}"
                )
                self.closing.fail(Ending("stalled", text, True), exit_code=code)
            elif self.stop is not None or code == Exit.YIELDED:
                self.release()
            else:
                self.closing.fail_by_exit(code, failure, log)
        self.closing.wait()

    def give_up(self, error: str, *, wait: bool = True) -> None:
        """Close the attempt after an error of the supervisor's own; an end that waits to be written stands."""
        if not self.closing.begun or self.lease.is_written:
            self.lease.forget()
            self.closing.fail(Ending("failed", error, True), exit_code=None)
        if wait:
            self.closing.wait()

    def say(self, text: str) -> None:
        """Tell whoever reads the worker's log."""
        lease, level = self._claim.lease, LogLine.of(text).level
        about: dict[str, int | str] = {"job": lease.job_id, "attempt": lease.attempt, "token": lease.token[:8]}
        self._around.say(LogLine(text, prefix=f"{self._name}: ", level=level, **about))

    def _acknowledge(self, engine: Engine, lease: queue.Lease, ref: queue.CheckpointRef) -> None:
        """Store the pointer; only then may the checkpoints before the last one stored go."""
        queue.checkpointed(engine, lease, ref)
        if self._stored_tokens is not None:
            attempt.prune(Path(ref.uri).parent, older_than=self._stored_tokens)
        self._stored_tokens = ref.tokens_seen


def prune(folder: Path, *, older_than: int) -> None:
    """Delete the checkpoints of fewer tokens.

    `older_than` is the last but one that the database has acknowledged: a trainer that saves through an outage of the
    database must not lose the pair that a successor will be handed.
    """
    if folder.is_dir():
        old = [path for path in folder.iterdir() if path.name.isdecimal() and int(path.name) < older_than]
        for path in old:
            # Out of the way first: whoever is killed here leaves no half of a checkpoint under its name.
            leaving = path.with_name(f".{path.name}.partial")
            with suppress(OSError):
                path.rename(leaving)
            shutil.rmtree(leaving, ignore_errors=True)
