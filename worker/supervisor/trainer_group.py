"""The attempts that share one trainer, from their claims to their ends: most often it is one."""

import os
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from orchestrator import queue
from orchestrator.errors import StorageError
from orchestrator.storage import activation_caches, cache_rows
from worker.protocol import Cached, Failure, Order, Said
from worker.supervisor.attempt import Attempt, Stop, SupervisorContext
from worker.supervisor.log import LogLine
from worker.supervisor.trainer_process import OOM_KILLED, TrainerProcess

LISTEN_SECONDS = 1.0
"""The longest that messages are heard without a look at leases and wishes: each may take a slow database a while."""


class TrainerGroup:
    """Claimed jobs of one stream of activations while this worker has them; most often it is one job."""

    def __init__(self, claims: Sequence[queue.Claim], around: SupervisorContext) -> None:
        """Take over claims."""
        self._around, self._settings = around, around.settings
        self._watch = Watch([Attempt(claim, around) for claim in claims], around)
        self._failure: Failure | None = None

    def run(self) -> None:
        """Train to the end, or to the moment somebody wants otherwise, and write down of each which it was."""
        code, log = self._train()
        for attempt in tuple(self._watch.ours):
            with self._watch.fenced(attempt):
                attempt.settle(code, self._failure, log)

    def give_up(self, error: str) -> None:
        """Close what is open after an error of the supervisor's own."""
        for attempt in self._watch.ours:
            with suppress(queue.LeaseLost):
                attempt.give_up(error)

    def _train(self) -> tuple[int, Path]:
        leader, *companions = self._watch.ours
        child = TrainerProcess(self._order(), log=leader.log)
        try:
            for attempt in companions:
                _link(attempt.log, leader.log)
            for attempt in self._watch.ours:
                attempt.introduce(child.pid)
            while not child.ended:
                self._listen(child)
                self._watch.mind(child)
        finally:
            code = child.close()
        if child.oom_killed:
            code, self._failure = OOM_KILLED.code, self._failure or OOM_KILLED
        return code, leader.log

    def _order(self) -> Order:
        home = self._settings.home
        return Order(
            jobs=tuple(attempt.assignment() for attempt in self._watch.ours),
            tokens_folder=str(home / "tokens"),
            compile_folder=str(home / "compile"),
            device=self._around.device,
            threads=self._around.threads,
            checkpoint_seconds=self._settings.checkpoint_seconds,
            supervisor=os.getpid(),
            compile=self._settings.compile,
            caches_folder=str(activation_caches.folder(home)),
            cache_bytes=self._settings.cache_limit,
        )

    def _listen(self, child: TrainerProcess) -> None:
        """Hear all that waits to be heard, so that no backlog grows while the database is slow."""
        until = time.monotonic() + LISTEN_SECONDS
        said = child.next(TICK_SECONDS)
        while said is not None:
            self._hear(child, said)
            said = child.next(0) if time.monotonic() < until else None

    def _hear(self, child: TrainerProcess, said: Said) -> None:
        if said.job_id is None and isinstance(said.message, Failure):
            self._failure = said.message
        if isinstance(said.message, Cached):
            _note(self._around, said.message)
        for attempt in self._watch.active:
            if attempt.job_id == said.job_id:
                with self._watch.fenced(attempt, child):
                    attempt.hear(said.message)


def _link(path: Path, log: Path) -> None:
    """Let the log be found under every job it tells of, where links can be made."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(log, path.parent))


def _note(around: SupervisorContext, cached: Cached) -> None:
    """Write down what a cache holds: for people, so that while the database is away it is not."""
    with suppress(StorageError):
        cache_rows.record(around.engine, **asdict(cached))


TICK_SECONDS = 0.2


class Watch:
    """The attempts of one trainer. What becomes of one is not the others' business."""

    def __init__(self, attempts: Sequence[Attempt], around: SupervisorContext) -> None:
        """Watch over attempts; `mind` does it, called again and again."""
        self.ours = [*attempts]
        """Whose lease is held, and whose end is not written yet."""
        self._around, self._settings = around, around.settings
        self._stop: Stop | None = None
        self._kill_at = float("inf")
        self._leave_by: dict[int, float] = {}

    @property
    def active(self) -> list[Attempt]:
        """Return those whom the trainer still trains."""
        return [attempt for attempt in self.ours if not attempt.closing.begun]

    def mind(self, child: TrainerProcess) -> None:
        """Renew the leases, and see whether anybody, or all of them, have to go."""
        if child.silent_seconds > self._settings.stall_seconds:
            self._end_stalled(child)  # and no heartbeat: it proves a trainer that moves
            return
        self._beat(child)
        told = self._around.tick()  # our own leases first: whoever was stopped for a while must not judge itself
        if self._stop is None and (reason := self._reason(told)):
            self._yield(child, self.active, reason)
        for attempt in self.active:
            with self.fenced(attempt, child):
                self._heed(child, attempt)
        if told > 1 or time.monotonic() > self._kill_at:
            child.kill()

    @contextmanager
    def fenced(self, attempt: Attempt, child: TrainerProcess | None = None) -> Iterator[None]:
        """Forget an attempt whose lease is lost or whose end is written; give up one that makes trouble, it alone."""
        try:
            yield
        except queue.LeaseLost:
            attempt.say(
                LogLine("the lease is lost, another worker may have it; nothing more is written", level="warning")
            )
            self._part(child, attempt)
        except Exception as error:  # noqa: BLE001 - the trouble of one job must not end its companions
            attempt.say(LogLine(f"the supervisor stumbled:\n{traceback.format_exc()}", level="error"))
            self._part(child, attempt)
            with suppress(queue.LeaseLost):
                attempt.give_up(f"{type(error).__name__}: {error}", wait=child is None)
                if not attempt.is_over:
                    return  # its end is written as soon as the database answers
        else:
            if not attempt.is_over:
                return
        self.ours.remove(attempt)
        self._around.changed(attempt.job_id)

    def _beat(self, child: TrainerProcess) -> None:
        """Renew the leases; a database that is away is waited for once a round, by another attempt each time."""
        for attempt in sorted(self.ours, key=lambda attempt: attempt.lease.refused_at):
            before = attempt.lease.refused_at
            with self.fenced(attempt, child):
                attempt.beat()
            if attempt.lease.refused_at != before:
                return

    def _part(self, child: TrainerProcess | None, attempt: Attempt) -> None:
        """Take an attempt from the trainer, which goes on with the others if there are any."""
        if child and attempt in self.active:
            child.kill() if self.active == [attempt] else child.leave(attempt.job_id, save=False)

    def _reason(self, told: int) -> Stop | None:
        if told:
            return "shutdown"
        away = max((attempt.lease.away_seconds for attempt in self.ours), default=0.0)
        return "outage" if away > self._settings.outage_seconds else None

    def _yield(self, child: TrainerProcess, attempts: Sequence[Attempt], reason: Stop) -> None:
        """Let the whole trainer write checkpoints and end."""
        self._stop = reason
        for attempt in attempts:
            attempt.stop = attempt.stop or reason
            attempt.say(f"{reason}: writing a checkpoint")
        child.terminate()
        self._kill_at = time.monotonic() + self._settings.terminate_seconds

    def _heed(self, child: TrainerProcess, attempt: Attempt) -> None:
        """Do what the person wants of one job."""
        desired = attempt.lease.desired
        if desired == "cancel":
            attempt.stop = "cancel"
            self._drop(child, attempt)
        elif desired == "pause" and attempt.stop is None:
            if self.active == [attempt]:
                self._yield(child, [attempt], "pause")
            elif attempt.has_begun:
                attempt.stop = "pause"
                attempt.say("pause: writing a checkpoint")
                child.leave(attempt.job_id, save=True)
                self._leave_by[attempt.job_id] = time.monotonic() + self._settings.terminate_seconds
            else:
                attempt.stop = "pause"
                self._drop(child, attempt)
        elif time.monotonic() > self._leave_by.get(attempt.job_id, float("inf")):
            self._drop(child, attempt)

    def _drop(self, child: TrainerProcess, attempt: Attempt) -> None:
        """Take one job from the trainer, and hand it back; the last one is handed back when the trainer is gone."""
        if self.active == [attempt]:
            child.kill()
        else:
            child.leave(attempt.job_id, save=False)
            attempt.release()

    def _end_stalled(self, child: TrainerProcess) -> None:
        if self._stop is None:
            self._stop = "stalled"
            for attempt in self.active:
                attempt.stop = attempt.stop or "stalled"
            child.dump_stacks()
            time.sleep(TICK_SECONDS)
        child.kill()
