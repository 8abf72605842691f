"""The supervisor: claim -> train -> record -> finish, one trainer at a time; one loop, woken by clock or doorbell."""

import queue as channels
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.errors import StorageError
from orchestrator.estimates import memory
from orchestrator.queue import workers
from orchestrator.settings import Settings
from worker.supervisor.attempt import SupervisorContext
from worker.supervisor.housekeeping import Housekeeping
from worker.supervisor.log import LogLine
from worker.supervisor.trainer_group import TrainerGroup

RING_SECONDS = 0.2
COMPANION_TRIES = 3
"""With one token: a claim whose answer was lost must be adopted before the trainer starts, or nobody holds it."""


class Supervisor:
    """One worker. It belongs to the thread that calls `run`: trainers die with that thread."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        worker: queue.Worker,
        threads: int,
        say: Callable[[str], None],
        changed: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Prepare; nothing is claimed yet."""
        self._settings, self._engine, self._worker, self._say = settings, engine, worker, say
        self._around = SupervisorContext(engine, settings, worker.device, threads, say, changed, self._tick)
        # SimpleQueue.put may be called from a signal handler; the locks of threading.Event may not.
        self._bell: channels.SimpleQueue[None] = channels.SimpleQueue()
        self._idle = threading.Event()
        self._stops = 0
        self._token = uuid.uuid4().hex
        self._rounds = Housekeeping(engine, settings, worker, say=say, changed=changed)
        self._drains = False

    @property
    def is_stopping(self) -> bool:
        """Say whether it was told to stop, or has ended."""
        return self._stops > 0

    def run(self, *, until_empty: bool = False) -> bool:
        """Work until told to stop or to drain, or until nothing is left to do; say whether it was told to stop."""
        try:
            while not self._leaves:
                self.drain()
                if self._leaves or (until_empty and self._empty()):
                    break
                self._wait()
            return self.is_stopping
        finally:
            self._stops = max(1, self._stops)
            self._idle.set()
            self._rounds.end()

    def drain(self) -> None:
        """Claim and train until nothing can be claimed."""
        while not self._leaves:
            self._tick()
            leader = None if self._leaves else self._claim(queue.claim)
            if leader is None:
                return
            self._work(leader)

    def stop(self) -> None:
        """Stop: the trainer writes a checkpoint first; told a second time, it is killed. Fit for signal handlers."""
        self._stops += 1
        self._bell.put(None)

    def ring(self) -> None:
        """Make the loop look at the queue now, and return when it has nothing more to do."""
        while not self._stops and not self._idle.wait(RING_SECONDS):
            pass
        self._idle.clear()
        self._bell.put(None)
        while not self._stops and not self._idle.wait(RING_SECONDS):
            pass

    def _wait(self) -> None:
        self._idle.set()
        deadline = time.monotonic() + self._settings.poll
        rung = False
        while not rung and not self._leaves and (left := deadline - time.monotonic()) > 0:
            with suppress(channels.Empty):
                self._bell.get(timeout=min(left, self._settings.reconcile_seconds or left))
                rung = True
            self._tick()
        self._idle.clear()

    def _claim(self, verb: Callable[..., queue.Claim | None], *, tries: int = 1) -> queue.Claim | None:
        try:
            claim = verb(self._engine, self._worker, token=self._token, lease_seconds=self._settings.lease_seconds)
        except StorageError as error:
            self._rounds.lost_touch(error)  # the next call has the same token, and adopts a claim whose answer was lost
            return self._claim(verb, tries=tries - 1) if tries > 1 else None
        self._rounds.in_touch()
        if claim is not None:
            self._token = uuid.uuid4().hex
        return claim

    def _gather(self, leader: queue.Claim, claims: list[queue.Claim]) -> None:
        """Claim what can share the leader's trainer: as many as are allowed, and as its device has room for."""
        if not leader.stream_key or self._settings.jobs_per_trainer <= 1:
            return
        room = memory.Room(self._settings, self._worker.device, threads=self._around.threads)
        room.ask()  # now: within the transaction of a claim it would hold up everybody
        verb = partial(
            queue.claim_companion, leader=leader, fits=lambda config: room.holds([*(c.config for c in claims), config])
        )
        while len(claims) < self._settings.jobs_per_trainer and not self._leaves:
            found = self._claim(verb, tries=COMPANION_TRIES)
            if found is None:
                return
            claims.append(found)

    def _work(self, leader: queue.Claim) -> None:
        claims, group = [leader], None
        try:
            self._gather(leader, claims)
            group = TrainerGroup(claims, self._around)
            group.run()
        except Exception as error:  # noqa: BLE001 - the trouble of some jobs must not end the worker
            jobs = ", ".join(str(claim.lease.job_id) for claim in claims)
            self._say(LogLine(f"job {jobs}: the supervisor stumbled:\n{traceback.format_exc()}", level="error"))
            (group or TrainerGroup(claims, self._around)).give_up(f"{type(error).__name__}: {error}")

    def _tick(self) -> int:
        """Make the round that is due; return how often this worker was told to stop."""
        self._heed(self._rounds.make())
        return self._stops

    @property
    def _leaves(self) -> bool:
        """Say whether nothing more is to be claimed."""
        return self._stops > 0 or self._drains

    def _heed(self, wish: workers.Wish) -> None:
        """Do what the person wants of this worker, once."""
        if wish == "stop" and not self._stops:
            self._say("asked to stop: running jobs write a checkpoint")
            self.stop()
        elif wish == "drain" and not self._leaves:
            self._say("asked to drain: running jobs are finished, and no more are claimed")
            self._drains = True

    def _empty(self) -> bool:
        try:
            return queue.is_done(self._engine)
        except StorageError as error:
            self._rounds.lost_touch(error)
            return False


def this_worker(name: str | None, *, pid: int, device: str) -> queue.Worker:
    """Return who this process is in the database."""
    host = socket.gethostname()
    return queue.Worker(name=name or f"{host}-{pid}", host=host, pid=pid, device=device)
