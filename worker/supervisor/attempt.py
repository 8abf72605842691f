"""One attempt, from its claim to its end: what the trainer reports of it is stored, under its own lease."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from sqlalchemy import Engine, func, select

from orchestrator import queue
from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.job import JobConfig
from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt as AttemptRow
from orchestrator.database.models import Job
from orchestrator.errors import CheckpointsElsewhere, SharedBy, is_of_machine
from orchestrator.formatting import jobs_named
from orchestrator.settings import Settings
from worker.evaluation_order import EvaluationAssignment
from worker.protocol import (
    Alive,
    Assignment,
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
from worker.supervisor.health import Health
from worker.supervisor.lease import HeldLease, Outage, Status, Write
from worker.supervisor.log import Level, LogLine
from worker.supervisor.trainer_process import Ending, meaning

LOG_TAIL = 2000
SAY_SECONDS = 60.0
"""Between two lines about the progress of one job; its trainer's log has every point."""
BACKOFF_SHARE = 1 / 3
"""Of a lease: the first pause after a failure, 30 s with a lease of 90 s."""
STOPPED_PATIENCE_SECONDS = 10.0
"""For how long a worker that is told to stop waits for a database that is away."""

Stop = Literal["shutdown", "pause", "cancel", "outage", "stalled"]
Say = Callable[[str], None]
_OUTCOME_OF = {"pause": "paused", "cancel": "cancelled"}


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

    def assignment(self) -> Assignment | None:
        """Return what the trainer is sent about this attempt; None of an evaluation."""
        lease, settings, config = self._claim.lease, self._context.settings, self._claim.config
        if not isinstance(config, JobConfig):
            return None
        return Assignment(
            job_id=lease.job_id,
            attempt=lease.attempt,
            config=config,
            artifacts=self._artifacts,
            resume=tuple(replace(ref, uri=settings.artifact(ref.uri)) for ref in self._claim.checkpoints),
        )

    def evaluation(self) -> EvaluationAssignment | None:
        """Return what the evaluation process is sent about this attempt; None of a training."""
        lease, config, evaluated = self._claim.lease, self._claim.config, self._claim.evaluated
        if isinstance(config, JobConfig) or evaluated is None:
            return None
        return EvaluationAssignment(
            job_id=lease.job_id,
            attempt=lease.attempt,
            config=config,
            evaluated=evaluated.model_copy(update={"uri": self._context.settings.artifact(evaluated.uri)}),
            artifacts=self._artifacts,
            measured=self._claim.measured,
        )

    @property
    def _artifacts(self) -> str:
        lease = self._claim.lease
        return str(self._context.settings.artifacts_folder / str(lease.job_id) / str(lease.attempt))

    def announce(self, pid: int) -> None:
        """Log which process has it."""
        config, evaluated = self._claim.config, self._claim.evaluated
        if isinstance(config, JobConfig):
            size = f"n={config.sae.n_latents}" if config.sae.n_latents else f"n={config.sae.expansion or 8}·d_model"
            self.say(f"{self._claim.sweep}, {size} k={config.sae.k}, trainer {pid}")
        elif evaluated is not None:
            self.say(f"{', '.join(config.plan.metrics)} of {evaluated.label}, evaluation {pid}")

    def handle(self, message: Message) -> None:
        """Store what the trainer reports, the end of the attempt included."""
        match message:
            case Started(tokens_seen, facts):
                self.has_begun, self._status = True, Status(tokens_seen)
                begin = partial(queue.begin, facts=facts, tokens_start=tokens_seen)
                self.lease.write(begin if self._claim.kind == "train" else partial(queue.begin_evaluation, facts=facts))
            case Alive(tokens_seen, rate):
                self._status = self._status._replace(tokens_seen=tokens_seen, tokens_per_second=rate)
            case CurvePointMessage(point):
                self._status = self._status._replace(tokens_seen=point.tokens_seen)
                self.lease.write(lambda engine, lease: queue.record(engine, lease, [point]))
            case CheckpointRef() as ref:
                self._status = self._status._replace(tokens_seen=max(ref.tokens_seen, self._status.tokens_seen))
                self.lease.write(lambda engine, lease: self._store_pointer(engine, lease, ref))
            case Ended():
                self.outcome.finish(message)
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
        if isinstance(message, Started | CurvePointMessage):
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

    def _say_at_times(self, message: Started | CurvePointMessage) -> None:
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
        self.say(f"{reason}: {'writing a checkpoint' if self._claim.kind == 'train' else 'what is measured is kept'}")

    def _note_fault(self, kind: str, text: str, code: int) -> None:
        if code == Exit.MACHINE:
            alone = kind == CheckpointsElsewhere.__name__
            self._context.health.fault(self.job_id, text, is_of_job_alone=alone)

    def _store_pointer(self, engine: Engine, lease: queue.Lease, ref: CheckpointRef) -> None:
        """Store the pointer; only then are the checkpoints before the last one stored deleted."""
        queue.checkpointed(engine, lease, ref)
        if self._stored_tokens is not None:
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
