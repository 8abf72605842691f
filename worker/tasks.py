"""The supervisor: claim -> train -> record -> finish, one trainer at a time; one loop, woken by clock or doorbell."""

import math
import queue as channels
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from sqlalchemy import Engine, or_, select

from orchestrator import dispatch, memory, queue
from orchestrator.database.engine import reading
from orchestrator.database.models import Job, SweepRow
from orchestrator.errors import StorageError
from orchestrator.settings import Settings
from worker.closing import Surroundings
from worker.group import Group

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
        self._around = Surroundings(engine, settings, worker.device, threads, say, changed, self._tick)
        # SimpleQueue.put may be called from a signal handler; the locks of threading.Event may not.
        self._bell: channels.SimpleQueue[None] = channels.SimpleQueue()
        self._idle = threading.Event()
        self._stops = 0
        self._token = uuid.uuid4().hex
        self._reconcile_at = 0.0
        self._away = False
        self._judge_at = 0.0
        self._looked_at = -math.inf

    def run(self, *, until_empty: bool = False) -> None:
        """Work until told to stop, or until nothing is left to do."""
        try:
            while not self._stops:
                self.drain()
                if self._stops or (until_empty and self._empty()):
                    return
                self._wait()
        finally:
            self._stops = max(1, self._stops)
            self._idle.set()

    def drain(self) -> None:
        """Claim and train until nothing can be claimed."""
        while not self._stops:
            self._tick()
            leader = self._claim(queue.claim)
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
        while not rung and not self._stops and (left := deadline - time.monotonic()) > 0:
            with suppress(channels.Empty):
                self._bell.get(timeout=min(left, self._settings.reconcile_seconds or left))
                rung = True
            self._tick()
        self._idle.clear()

    def _claim(self, verb: Callable[..., queue.Claim | None], *, tries: int = 1) -> queue.Claim | None:
        try:
            claim = verb(self._engine, self._worker, token=self._token, lease_seconds=self._settings.lease_seconds)
        except StorageError as error:
            self._lost_touch(error)  # the next call has the same token, and adopts a claim whose answer was lost
            return self._claim(verb, tries=tries - 1) if tries > 1 else None
        self._in_touch()
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
        while len(claims) < self._settings.jobs_per_trainer and not self._stops:
            found = self._claim(verb, tries=COMPANION_TRIES)
            if found is None:
                return
            claims.append(found)

    def _work(self, leader: queue.Claim) -> None:
        claims, group = [leader], None
        try:
            self._gather(leader, claims)
            group = Group(claims, self._around)
            group.run()
        except Exception as error:  # noqa: BLE001 - the trouble of some jobs must not end the worker
            jobs = ", ".join(str(claim.lease.job_id) for claim in claims)
            self._say(f"job {jobs}: the supervisor stumbled:\n{traceback.format_exc()}")
            (group or Group(claims, self._around)).give_up(f"{type(error).__name__}: {error}")

    def _tick(self) -> int:
        """Release what other workers left behind, if it is time to; return how often this one was told to stop."""
        asleep, self._looked_at = time.monotonic() - self._looked_at, time.monotonic()
        if asleep > self._settings.lease_seconds / 2:  # just started, stopped, or hung: so may all have been
            self._judge_at = time.monotonic() + self._settings.lease_seconds
        if time.monotonic() >= self._reconcile_at:
            self._reconcile_at = time.monotonic() + self._settings.reconcile_seconds
            try:
                judge = not self._away and time.monotonic() >= self._judge_at
                done = dispatch.reconcile(self._engine, self._settings, judge=judge)
            except StorageError as error:
                self._lost_touch(error)
            else:
                self._in_touch()
                for job_id in done.released:
                    self._say(f"job {job_id}: its worker fell silent; released")
                    self._around.changed(job_id)
        return self._stops

    def _lost_touch(self, error: StorageError) -> None:
        if not self._away:
            self._say(f"{error.message}; trying again")
        self._away = True

    def _in_touch(self) -> None:
        """After an outage every lease looks expired: wait a whole one before judging anybody."""
        if self._away:
            self._say("the database answers again")
            self._judge_at = time.monotonic() + self._settings.lease_seconds
        self._away = False

    def _empty(self) -> bool:
        """Say whether no job runs, anywhere, and none is queued or waits for its next attempt; paused sweeps aside."""
        waits = (Job.state == "queued") & SweepRow.paused.is_(False)
        left = select(Job.id).join(SweepRow).where(or_(Job.state == "running", waits)).limit(1)
        try:
            with reading(self._engine) as session:
                return session.scalar(left) is None
        except StorageError as error:
            self._lost_touch(error)
            return False


def this_worker(name: str | None, *, pid: int, device: str) -> queue.Worker:
    """Return who this process is in the database."""
    host = socket.gethostname()
    return queue.Worker(name=name or f"{host}-{pid}", host=host, pid=pid, device=device)
