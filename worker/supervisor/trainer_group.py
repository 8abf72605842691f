"""The attempts that share one trainer or evaluation process, from claim to end: most often it is one attempt."""

import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from orchestrator import queue
from orchestrator.errors import StorageError
from orchestrator.storage import cache_rows
from worker.protocol import Cached, Failure, Said
from worker.supervisor.attempt import Attempt, Stop
from worker.supervisor.attempt_outcome import SupervisorContext
from worker.supervisor.lease import Outage
from worker.supervisor.log import LogLine
from worker.supervisor.orders import order_of
from worker.supervisor.trainer_process import OOM_KILLED, TrainerProcess

TICK_SECONDS = 0.2
LISTEN_SECONDS = 1.0
"""The longest that messages are handled without a look at the leases: each may take a slow database a while."""


class TrainerGroup:
    """Claimed jobs that one process trains, or evaluates. What becomes of one of them does not touch the others."""

    def __init__(self, claims: Sequence[queue.Claim], context: SupervisorContext) -> None:
        """Take over claims."""
        self._context, self._settings = context, context.settings
        outage = Outage()
        self._held = [Attempt(claim, context, outage) for claim in claims]
        """Attempts whose lease is held and whose outcome is not stored yet."""
        self._stop: Stop | None = None
        """Why the whole trainer was told to end."""
        self._kill_at = float("inf")
        self._drop_at: dict[int, float] = {}
        """By job, when it is dropped without the checkpoint that it was asked for."""
        self._failure: Failure | None = None
        """What the trainer said of its own end."""

    @property
    def active(self) -> list[Attempt]:
        """Return the attempts that the trainer still trains."""
        return [attempt for attempt in self._held if not attempt.outcome.is_decided]

    def run(self) -> None:
        """Train until every attempt has ended or was stopped, and store how."""
        code, log = self._train()
        n_jobs = len(self.active)
        for attempt in tuple(self._held):
            with self._isolated(attempt):
                attempt.settle(code, self._failure, log, n_jobs=n_jobs)

    def give_up(self, error: Exception) -> None:
        """Close what is open after an error of the supervisor itself."""
        for attempt in self._held:
            with suppress(queue.LeaseLost):
                attempt.give_up(error)

    def supervise(self, trainer: TrainerProcess) -> None:
        """Renew the leases, and stop the attempts, or the trainer, that have to stop."""
        if trainer.silent_seconds > self._settings.stall_seconds:
            self._end_stalled(trainer)  # without a heartbeat, which would say that the trainer works
            return
        self._renew_leases(trainer)
        # After our own leases: a worker that was suspended for a while must not judge its own as expired.
        times_stopped = self._context.tick()
        reason = self._reason_to_stop(times_stopped)
        if self._stop is None and reason is not None:
            self._stop_trainer(trainer, self.active, reason)
        for attempt in self.active:
            with self._isolated(attempt, trainer):
                self._follow_request(trainer, attempt)
        if times_stopped > 1 or time.monotonic() > self._kill_at:
            trainer.kill()

    def _train(self) -> tuple[int, Path]:
        leader, *companions = self._held
        order = order_of([one.claim for one in self._held], self._context)
        trainer = self._context.idle.start(order, log=leader.log)
        try:
            for attempt in companions:
                _link(attempt.log, leader.log)
            for attempt in self._held:
                attempt.announce(trainer.pid)
            while not trainer.ended and not trainer.is_idle:
                self._handle_messages(trainer)
                self.supervise(trainer)
        finally:
            code = self._context.idle.keep(trainer, order.threads) if trainer.is_idle else trainer.close()
        if trainer.oom_killed:
            code, self._failure = OOM_KILLED.code, self._failure or OOM_KILLED
        return code, leader.log

    def _handle_messages(self, trainer: TrainerProcess) -> None:
        """Handle all messages that wait, so that no backlog grows while the database is slow."""
        until = time.monotonic() + LISTEN_SECONDS
        said = trainer.next(TICK_SECONDS)
        while said is not None:
            self._handle(trainer, said)
            said = trainer.next(0) if time.monotonic() < until else None

    def _handle(self, trainer: TrainerProcess, said: Said) -> None:
        if said.job_id is None and isinstance(said.message, Failure):
            self._failure = said.message
        if isinstance(said.message, Cached):
            with suppress(StorageError):  # a row for people to read: nothing waits for it through an outage
                cache_rows.record(self._context.engine, **asdict(said.message))
        for attempt in self.active:
            if attempt.job_id == said.job_id:
                with self._isolated(attempt, trainer):
                    attempt.handle(said.message)

    @contextmanager
    def _isolated(self, attempt: Attempt, trainer: TrainerProcess | None = None) -> Iterator[None]:
        """Keep an error of one attempt from the others; forget an attempt that is over, or whose lease is lost."""
        try:
            yield
        except queue.LeaseLost:
            text = "the lease is lost, another worker may have it; nothing more is written"
            attempt.say(LogLine(text, level="warning"))
            self._take_from(trainer, attempt)
        except Exception as error:  # noqa: BLE001 - an error with one job must not end its companions
            attempt.say(LogLine(f"an error in the supervisor:\n{traceback.format_exc()}", level="error"))
            self._take_from(trainer, attempt)
            with suppress(queue.LeaseLost):
                attempt.give_up(error, wait=trainer is None)
                if not attempt.is_over:
                    return  # its outcome is stored as soon as the database answers
        else:
            if not attempt.is_over:
                return
        self._held.remove(attempt)
        self._context.changed(attempt.job_id)

    def _renew_leases(self, trainer: TrainerProcess) -> None:
        """Renew the leases. A database that is away is waited for once: by the first of them that is due."""
        for attempt in tuple(self._held):
            with self._isolated(attempt, trainer):
                attempt.heartbeat()

    def _take_from(self, trainer: TrainerProcess | None, attempt: Attempt) -> None:
        """Take an attempt from the trainer, which goes on with the others if there are any."""
        if trainer is None or attempt not in self.active:
            return
        if self.active == [attempt]:
            trainer.kill()
        else:
            trainer.drop(attempt.job_id, save=False)

    def _reason_to_stop(self, times_stopped: int) -> Stop | None:
        if times_stopped:
            return "shutdown"
        away = max((attempt.lease.away_seconds for attempt in self._held), default=0.0)
        return "outage" if away > self._settings.outage_seconds else None

    def _stop_trainer(self, trainer: TrainerProcess, attempts: Sequence[Attempt], reason: Stop) -> None:
        """Let the whole trainer write checkpoints and end."""
        self._stop = reason
        for attempt in attempts:
            attempt.stop = attempt.stop or reason
            attempt.say_leaving(reason)
        trainer.terminate()
        self._kill_at = time.monotonic() + self._settings.terminate_seconds

    def _follow_request(self, trainer: TrainerProcess, attempt: Attempt) -> None:
        """Cancel or pause one attempt where its job's desired state asks for it."""
        desired = attempt.lease.desired
        if desired == "cancel":
            attempt.stop = "cancel"
            self._drop(trainer, attempt)
        elif desired == "pause" and attempt.stop is None:
            self._pause(trainer, attempt)
        elif time.monotonic() > self._drop_at.get(attempt.job_id, float("inf")):
            self._drop(trainer, attempt)

    def _pause(self, trainer: TrainerProcess, attempt: Attempt) -> None:
        if self.active == [attempt]:
            self._stop_trainer(trainer, [attempt], "pause")
            return
        attempt.stop = "pause"
        if not attempt.has_begun:
            self._drop(trainer, attempt)
            return
        attempt.say_leaving("pause")
        trainer.drop(attempt.job_id, save=True)
        self._drop_at[attempt.job_id] = time.monotonic() + self._settings.terminate_seconds

    def _drop(self, trainer: TrainerProcess, attempt: Attempt) -> None:
        """Take one job from the trainer and hand it back; the last one is handed back when the trainer has ended."""
        if self.active == [attempt]:
            trainer.kill()
        else:
            trainer.drop(attempt.job_id, save=False)
            attempt.release()

    def _end_stalled(self, trainer: TrainerProcess) -> None:
        if self._stop is None:
            self._stop = "stalled"
            for attempt in self.active:
                attempt.stop = attempt.stop or "stalled"
            trainer.dump_stacks()
            time.sleep(TICK_SECONDS)
        trainer.kill()


def _link(path: Path, log: Path) -> None:
    """Let the log be found under every job it tells of, where links can be made."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(log, path.parent))
