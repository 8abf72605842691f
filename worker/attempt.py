"""One attempt, from the claim to its end: what the trainer says is written down, what the person wants is done."""

import os
import time
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine

from orchestrator import queue
from worker import retention
from worker.closing import Closing, Surroundings
from worker.lease import HeldLease, Status
from worker.process import Ending, TrainerProcess
from worker.protocol import Alive, Ended, Exit, Failure, Measured, Message, Order, Saved, Started, describe

TICK_SECONDS = 0.2
Stop = Literal["shutdown", "pause", "cancel", "outage", "stalled"]
_TO_YIELD = ("shutdown", "pause", "outage")
_OUTCOMES = {"pause": "paused", "cancel": "cancelled"}


class Attempt:
    """A claimed job while this worker has it."""

    def __init__(self, claim: queue.Claim, around: Surroundings) -> None:
        """Take over a claim."""
        self._claim, self._around = claim, around
        self._settings = around.settings
        self._lease = HeldLease(around.engine, claim.lease, around.settings)
        self._status = Status()
        self._ended: Ended | None = None
        self._failure: Failure | None = None
        self._stop: Stop | None = None
        self._kill_at = float("inf")
        self._stored_tokens: int | None = None
        again = f" attempt {claim.lease.attempt}" if claim.lease.attempt > 1 else ""
        self._name = f"job {claim.lease.job_id}{again}"
        self._closing = Closing(self._lease, around, self._say)

    def run(self) -> None:
        """Train to the end, or to the moment somebody wants otherwise, and write down which it was."""
        try:
            code, log = self._train()
            self._settle(code, log)
        except queue.LeaseLost:
            self._say("the lease is lost, another worker may have it; nothing more is written")
        self._around.changed(self._claim.lease.job_id)

    def give_up(self, error: str) -> None:
        """Close the attempt after an error of the supervisor's own."""
        self._lease.forget()
        self._closing.fail(Ending("failed", error, True), exit_code=None)

    def _train(self) -> tuple[int, Path]:
        lease = self._claim.lease
        log = self._settings.home / "logs" / str(lease.job_id) / f"{lease.attempt}.log"
        child = TrainerProcess(self._order(), log=log)
        sae = self._claim.config.sae
        size = f"n={sae.n_latents}" if sae.n_latents else f"n={sae.expansion or 8}·d_model"
        self._say(f"{self._claim.sweep}, {size} k={sae.k}, trainer {child.pid}")
        try:
            while not child.ended:
                message = child.next(TICK_SECONDS)
                if message is not None:
                    self._hear(message)
                self._mind(child)
        finally:
            code = child.close()
        return code, log

    def _order(self) -> Order:
        lease, home = self._claim.lease, self._settings.home
        return Order(
            job_id=lease.job_id,
            attempt=lease.attempt,
            config=self._claim.config,
            artifacts=str(home / "artifacts" / str(lease.job_id) / str(lease.attempt)),
            tokens_folder=str(home / "tokens"),
            resume=tuple(Saved(c.uri, c.tokens_seen, c.sha256) for c in self._claim.checkpoints),
            device=self._around.device,
            threads=self._around.threads,
            checkpoint_seconds=self._settings.checkpoint_seconds,
            supervisor=os.getpid(),
        )

    def _hear(self, message: Message) -> None:
        match message:
            case Started(tokens_seen, facts):
                self._status = Status(tokens_seen)
                self._lease.write(lambda engine, lease: queue.begin(engine, lease, facts, tokens_seen))
            case Alive(tokens_seen, rate):
                self._status = self._status._replace(tokens_seen=tokens_seen, tokens_per_second=rate)
            case Measured(point):
                self._status = self._status._replace(tokens_seen=point.tokens_seen, fvu=point.fvu)
                self._lease.write(lambda engine, lease: queue.record(engine, lease, [point]))
            case Saved(uri, tokens_seen, sha256):
                ref = queue.CheckpointRef(uri=uri, tokens_seen=tokens_seen, sha256=sha256)
                self._lease.write(lambda engine, lease: self._acknowledge(engine, lease, ref))
            case Ended():
                self._ended = message
            case Failure():
                self._failure = message
        if isinstance(message, Started | Measured):
            self._say(describe(message))
            self._around.changed(self._claim.lease.job_id)

    def _acknowledge(self, engine: Engine, lease: queue.Lease, ref: queue.CheckpointRef) -> None:
        """Store the pointer; only then may the checkpoints before the last one stored go."""
        queue.checkpointed(engine, lease, ref)
        if self._stored_tokens is not None:
            retention.prune(Path(ref.uri).parent, older_than=self._stored_tokens)
        self._stored_tokens = ref.tokens_seen

    def _mind(self, child: TrainerProcess) -> None:
        """Renew the lease, and see whether the trainer has to go."""
        if child.silent_seconds > self._settings.stall_seconds:
            if self._stop is None:
                self._stop = "stalled"
                child.dump_stacks()
                time.sleep(TICK_SECONDS)
            child.kill()  # and no heartbeat: it proves a trainer that moves
            return
        desired = self._lease.beat(self._status)
        self._lease.flush()
        told = self._around.tick()  # our own lease first: whoever was stopped for a while must not judge itself
        if self._stop is None:
            self._stop = self._wish(told, desired)
            if self._stop in _TO_YIELD:
                self._say(f"{self._stop}: writing a checkpoint")
                child.terminate()
                self._kill_at = time.monotonic() + self._settings.terminate_seconds
        if self._stop == "cancel" or desired == "cancel" or told > 1 or time.monotonic() > self._kill_at:
            child.kill()

    def _wish(self, told: int, desired: queue.Desired) -> Stop | None:
        if told:
            return "shutdown"
        if desired != "run":
            return desired
        return "outage" if self._lease.away_seconds > self._settings.outage_seconds else None

    def _settle(self, code: int, log: Path) -> None:
        """Write down how the attempt ended."""
        if self._ended is not None:
            self._closing.finish(self._ended)
        elif self._stop == "stalled":
            text = f"no word from the trainer for {self._settings.stall_seconds:g} s; its stacks are in {log}"
            self._closing.fail(Ending("stalled", text, True), exit_code=code)
        elif self._stop is not None or code == Exit.YIELDED:
            self._closing.release(_OUTCOMES.get(self._stop or "", "preempted"))
        else:
            self._closing.fail_by_exit(code, self._failure, log)

    def _say(self, text: str) -> None:
        self._around.say(f"{self._name}: {text}")
