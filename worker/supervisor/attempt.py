"""One attempt, from its claim to its end: what the trainer reports of it is stored, under its own lease."""

import shutil
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.curves.lens_curve import LensPoint, LensResult
from orchestrator.errors import CheckpointsElsewhere, is_of_machine
from worker.protocol import (
    Alive,
    CurvePointMessage,
    Ended,
    Evaluated,
    Exit,
    Failure,
    Left,
    Message,
    NotScored,
    Scored,
    Started,
    describe,
)
from worker.supervisor.attempt_outcome import AttemptOutcome, SupervisorContext
from worker.supervisor.lease import HeldLease, Outage, Status
from worker.supervisor.log import LogLine
from worker.supervisor.orders import announcement
from worker.supervisor.trainer_process import Ending, meaning

SAY_SECONDS = 60.0
"""Between two lines about the progress of one job; its trainer's log has every point."""

Stop = Literal["shutdown", "pause", "cancel", "outage", "stalled"]
_KEPT = {"train": "writing a checkpoint", "evaluate": "what is measured is kept", "lens": "writing a checkpoint"}
_OUTCOME_OF = {"pause": "paused", "cancel": "cancelled"}


class Attempt:
    """A claimed job while this worker holds it. Any method may raise LeaseLost: then this worker is done with it."""

    def __init__(self, claim: queue.Claim, context: SupervisorContext, outage: Outage) -> None:
        """Take over a claim; `outage` is shared with the attempts beside it."""
        self._claim, self._context = claim, context
        self.lease = HeldLease(context.engine, claim.lease, context.settings, outage=outage)
        self.outcome = AttemptOutcome(claim, self.lease, context, self.say)
        self.stop: Stop | None = None
        self.has_begun = False
        self._status = Status()
        self._stored_tokens: int | None = None
        self._say_again_at = 0.0
        again = f" attempt {claim.lease.attempt}" if claim.lease.attempt > 1 else ""
        self._name = f"job {claim.lease.job_id}{again}"

    @property
    def job_id(self) -> int:
        """Return the job's id."""
        return self._claim.lease.job_id

    @property
    def is_over(self) -> bool:
        """Say whether its outcome is stored."""
        return self.outcome.is_decided and self.lease.is_written

    @property
    def log(self) -> Path:
        """Return the path under which `orch logs` looks for the trainer's log of this attempt."""
        lease = self._claim.lease
        return self._context.settings.log_file(lease.job_id, lease.attempt)

    @property
    def claim(self) -> queue.Claim:
        """Return the claim that it runs by."""
        return self._claim

    def announce(self, pid: int) -> None:
        """Log which process has it."""
        self.say(announcement(self._claim, pid))
        self._context.changed(self.job_id)

    def handle(self, message: Message) -> None:
        """Store what the trainer reports, the end of the attempt included."""
        match message:
            case Started(tokens_seen, facts):
                self.has_begun, self._status = True, Status(tokens_seen)
                begin = partial(queue.begin, facts=facts, tokens_start=tokens_seen, kind=self._claim.kind)
                is_evaluation = self._claim.kind == "evaluate"
                self.lease.write(partial(queue.begin_evaluation, facts=facts) if is_evaluation else begin)
            case Alive(tokens_seen, rate):
                self._status = self._status._replace(tokens_seen=tokens_seen, tokens_per_second=rate)
            case CurvePointMessage(point) | (LensPoint() as point):
                self._status = self._status._replace(tokens_seen=point.tokens_seen)
                self.lease.write(lambda engine, lease: queue.record(engine, lease, [point]))
            case CheckpointRef() as ref:
                self._status = self._status._replace(tokens_seen=max(ref.tokens_seen, self._status.tokens_seen))
                self.lease.write(lambda engine, lease: self._store_pointer(engine, lease, ref))
            case Ended():
                self.outcome.finish(message)
            case LensResult():
                self.outcome.finish_lens(message)
            case Scored() | NotScored() | Evaluated():
                self._handle_scores(message)
            case Left():
                self.release()
            case Failure(kind, text, hint, code, shared_by):
                self._note_fault(kind, text, code)
                self.outcome.fail(meaning(code)._replace(text=text), exit_code=code, hint=hint, shared_by=shared_by)
        if isinstance(message, Started) and message.tokens_seen < self._claim.cursor:
            lost, start = self._claim.cursor, message.tokens_seen
            self.say(
                LogLine(f"its checkpoint at {lost:,} tokens cannot be read: it goes on from {start:,}", level="error")
            )
        if isinstance(message, Started | CurvePointMessage | LensPoint):
            self._say_at_times(message)
            self._context.changed(self.job_id)

    def _handle_scores(self, message: Scored | NotScored | Evaluated) -> None:
        """Store what an evaluation reports: a family's scores, why it has none, or the end."""
        if isinstance(message, Evaluated):
            self.outcome.finish_evaluation(message)
            return
        self.say(describe(message))
        if isinstance(message, Scored):
            store = partial(
                queue.record_scores, family=message.family, scores=message.scores, wall_seconds=message.wall_seconds,
                files_uri=message.files_uri, tokens=message.tokens, measured_on=message.measured_on,
            )  # fmt: skip
            self.lease.write(store)
        else:
            error = f"{message.message}\n{message.hint}".strip()
            self.lease.write(partial(queue.record_failed_family, family=message.family, error=error))
        self._context.changed(self.job_id)

    def _say_at_times(self, message: Started | CurvePointMessage | LensPoint) -> None:
        """Log how far it is: once a minute, for a worker may have many jobs."""
        now = time.monotonic()
        if isinstance(message, Started) or now >= self._say_again_at:
            self.say(describe(message))
            self._say_again_at = now + SAY_SECONDS

    def heartbeat(self) -> None:
        """Renew the lease if it is time to, and store what waits to be stored."""
        self.lease.heartbeat(self._status)
        self.lease.flush()

    def release(self) -> None:
        """Hand the job back: as preempted, or as the pause or the cancel that was asked for."""
        self.outcome.release(_OUTCOME_OF.get(self.stop or "", "preempted"))

    def settle(self, code: int, failure: Failure | None, log: Path, *, n_jobs: int = 1) -> None:
        """Store how the attempt ended when its trainer did, with `n_jobs` in it, unless that is known already."""
        if not self.outcome.is_decided:
            if self.stop == "stalled":
                seconds = self._context.settings.stall_seconds
                text = f"no word from its process for {seconds:g} s; its stacks are in {log}"
                self.outcome.fail(Ending("stalled", text, True), exit_code=code)
            elif self.stop is not None or code == Exit.YIELDED:
                self.release()
            elif n_jobs > 1 and failure is None and meaning(code).outcome in ("crashed", "failed"):
                self.outcome.crash_in_company(code, log, n_jobs=n_jobs)
            else:
                if failure:
                    self._note_fault(failure.kind, failure.message, code)
                self.outcome.fail_by_exit(code, failure, log)
        self.outcome.wait()

    def give_up(self, error: Exception, *, wait: bool = True) -> None:
        """Close the attempt after an error of the supervisor itself; an outcome that waits to be stored stands."""
        if not self.outcome.is_decided or self.lease.is_written:
            self.lease.forget()
            text, code = f"{type(error).__name__}: {error}", Exit.MACHINE if is_of_machine(error) else Exit.INTERNAL
            self._note_fault(type(error).__name__, text, code)
            self.outcome.fail(meaning(code)._replace(text=text), exit_code=None)
        if wait:
            self.outcome.wait()

    def say(self, text: str) -> None:
        """Write a line about this attempt to the worker's log."""
        lease, level = self._claim.lease, LogLine.of(text).level
        about: dict[str, int | str] = {"job": lease.job_id, "attempt": lease.attempt, "token": lease.token[:8]}
        self._context.say(LogLine(text, prefix=f"{self._name}: ", level=level, **about))

    def say_leaving(self, reason: str) -> None:
        """Say that the job is left, and what is kept of it."""
        self.say(f"{reason}: {_KEPT[self._claim.kind]}")

    def _note_fault(self, kind: str, text: str, code: int) -> None:
        if code == Exit.MACHINE:
            alone = kind == CheckpointsElsewhere.__name__
            self._context.health.fault(self.job_id, text, is_of_job_alone=alone)

    def _store_pointer(self, engine: Engine, lease: queue.Lease, ref: CheckpointRef) -> None:
        """Store the pointer; only then are the checkpoints before the last one stored deleted."""
        queue.checkpointed(engine, lease, ref)
        if self._stored_tokens not in (None, ref.tokens_seen):  # a trainer that stops may have saved this very moment
            prune(Path(ref.uri).parent, older_than=self._stored_tokens)
        self._stored_tokens = ref.tokens_seen


def prune(folder: Path, *, older_than: int) -> None:
    """Delete the checkpoints of fewer tokens.

    `older_than` is the last but one whose pointer is stored: a trainer that saves through an outage of the database
    must not lose the two that the next attempt will be handed.
    """
    if folder.is_dir():
        old = [path for path in folder.iterdir() if path.name.isdecimal() and int(path.name) < older_than]
        for path in old:
            # Renamed first: a worker killed here leaves no incomplete checkpoint under a checkpoint's name.
            partial = path.with_name(f".{path.name}.partial")
            with suppress(OSError):
                path.rename(partial)
            shutil.rmtree(partial, ignore_errors=True)
