"""One attempt, from the claim to its end: what the trainer says of it is written down, under its own lease."""

from pathlib import Path
from typing import Literal

from sqlalchemy import Engine

from orchestrator import queue
from worker import retention
from worker.closing import Closing, Surroundings
from worker.lease import HeldLease, Status
from worker.process import Ending, meaning
from worker.protocol import Alive, Assignment, Ended, Exit, Failure, Left, Measured, Message, Saved, Started, describe
from worker.voice import Remark

Stop = Literal["shutdown", "pause", "cancel", "outage", "stalled"]
_OUTCOMES = {"pause": "paused", "cancel": "cancelled"}


class Attempt:
    """A claimed job while this worker has it. Its methods may raise LeaseLost: then it is nobody's business here."""

    def __init__(self, claim: queue.Claim, around: Surroundings) -> None:
        """Take over a claim."""
        self._claim, self._around = claim, around
        self.lease = HeldLease(around.engine, claim.lease, around.settings)
        self.closing = Closing(self.lease, around, self.say)
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
        return self._around.settings.home / "logs" / str(lease.job_id) / f"{lease.attempt}.log"

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
            case Measured(point):
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
        if isinstance(message, Started | Measured):
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
        lease, level = self._claim.lease, Remark.of(text).level
        about: dict[str, int | str] = {"job": lease.job_id, "attempt": lease.attempt, "token": lease.token[:8]}
        self._around.say(Remark(text, prefix=f"{self._name}: ", level=level, **about))

    def _acknowledge(self, engine: Engine, lease: queue.Lease, ref: queue.CheckpointRef) -> None:
        """Store the pointer; only then may the checkpoints before the last one stored go."""
        queue.checkpointed(engine, lease, ref)
        if self._stored_tokens is not None:
            retention.prune(Path(ref.uri).parent, older_than=self._stored_tokens)
        self._stored_tokens = ref.tokens_seen
