"""The supervisor: claim -> train -> record -> finish, one trainer at a time; one loop, by polling or by wake-ups."""

import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.config.job import JobConfig
from orchestrator.cores import machine_id, part_of_cores
from orchestrator.errors import StorageError
from orchestrator.estimates import memory
from orchestrator.queue import workers
from orchestrator.settings import Settings
from worker.supervisor.attempt_outcome import SupervisorContext
from worker.supervisor.health import Health
from worker.supervisor.housekeeping import Housekeeping
from worker.supervisor.idle_process import IdleProcess
from worker.supervisor.log import LogLine
from worker.supervisor.trainer_group import TrainerGroup

if TYPE_CHECKING:
    from orchestrator.queue.types import AnyConfig

WAKE_CHECK_SECONDS = 0.2
STOP_CHECK_SECONDS = 1.0
"""A signal that comes just before a wait begins, or to another thread, does not end the wait: it is heeded after it."""
COMPANION_TRIES = 3
"""With one token: a claim whose answer was lost must be adopted before the trainer starts, or no attempt runs it."""


class Supervisor:
    """One worker. The thread that calls `run` must outlive its trainers: they are killed when it ends."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        *,
        worker: queue.Worker,
        threads: int | None,
        say: Callable[[str], None],
        changed: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Prepare; nothing is claimed yet. `threads`: of a trainer; None: its part of the cores."""
        self._settings, self._engine, self._worker, self._say = settings, engine, worker, say
        self._threads = threads
        self._health = Health(settings, say=say)
        self._context = SupervisorContext(
            engine, settings, worker.device, threads or 1, say, changed, self._tick, self._health, IdleProcess()
        )
        # SimpleQueue.put may be called from a signal handler; the locks of threading.Event may not.
        self._wake_ups: SimpleQueue[None] = SimpleQueue()
        self._idle = threading.Event()
        self._stops = 0
        self._token = uuid.uuid4().hex
        self._housekeeping = Housekeeping(engine, settings, worker, say=say, changed=changed)
        self._is_draining = False

    @property
    def is_stopping(self) -> bool:
        """Say whether it was told to stop, or has ended."""
        return self._stops > 0

    @property
    def database_gone(self) -> str | None:
        """Return what has become of the database under this worker, where that is why it stopped."""
        return self._housekeeping.gone

    def run(self, *, until_empty: bool = False) -> bool:
        """Work until told to stop or to drain, or until no job is left; say whether it was told to stop."""
        try:
            while not self._is_leaving:
                self.drain()
                if self._is_leaving or (until_empty and self._empty()):
                    break
                self._wait()
            return self.is_stopping
        finally:
            self._stops = max(1, self._stops)
            self._idle.set()
            self._housekeeping.end()

    def drain(self) -> None:
        """Claim and train until nothing can be claimed."""
        try:
            while not self._is_leaving:
                self._tick()
                may_claim = not self._is_leaving and self._health.may_claim()
                self._housekeeping.tell(unwell=self._health.reason)
                leader = self._claim(queue.claim) if may_claim else None
                if leader is None:
                    return
                self._work(leader)
        finally:
            self._context.idle.end()

    def stop(self) -> None:
        """Stop: the trainer writes a checkpoint first; told a second time, it is killed. Fit for signal handlers."""
        self._stops += 1
        self._wake_ups.put(None)

    def wake(self) -> None:
        """Make the loop look at the queue now; return when nothing more can be claimed. For other threads to call."""
        self._wait_until_idle()
        self._idle.clear()
        self._wake_ups.put(None)
        self._wait_until_idle()

    def _wait_until_idle(self) -> None:
        while not self._stops and not self._idle.wait(WAKE_CHECK_SECONDS):
            pass

    def _wait(self) -> None:
        self._idle.set()
        deadline = time.monotonic() + self._settings.poll
        woken = False
        while not woken and not self._is_leaving:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            with suppress(Empty):
                self._wake_ups.get(timeout=min(left, self._settings.reconcile_seconds or left, STOP_CHECK_SECONDS))
                woken = True
            self._tick()
        self._idle.clear()

    def _claim(self, verb: Callable[..., queue.Claim | None], *, tries: int = 1) -> queue.Claim | None:
        try:
            claim = verb(
                self._engine, self._worker, token=self._token, lease_seconds=self._settings.lease_seconds,
                without=self._health.refused,
            )  # fmt: skip
        except StorageError as error:
            # The next call has the same token: it adopts a claim whose answer was lost.
            self._housekeeping.note_outage(error)
            return self._claim(verb, tries=tries - 1) if tries > 1 else None
        self._housekeeping.note_answer()
        if claim is not None:
            self._token = uuid.uuid4().hex
        return claim

    def _gather(self, leader: queue.Claim, claims: list[queue.Claim]) -> None:
        """Claim jobs that can share the leader's trainer: as many as are allowed, and as fit in its memory."""
        if not leader.stream_key or self._settings.jobs_per_trainer <= 1:
            return
        room = memory.Room(self._settings, self._worker.device, threads=self._context.threads)
        if isinstance(leader.config, JobConfig):
            self._context.idle.end()  # no room is there yet where it holds memory
            room.ask()  # now: within the transaction of a claim it would block other claims for seconds

        def fits(config: "AnyConfig") -> bool:
            """Say whether there is room; an evaluation loads no more SAEs at once than it has room for."""
            return not isinstance(config, JobConfig) or room.holds([*(claim.job_config for claim in claims), config])

        verb = partial(queue.claim_companion, leader=leader, fits=fits)
        while not self._is_leaving:
            most = min([self._settings.jobs_per_trainer, *(claim.company for claim in claims if claim.company)])
            if len(claims) >= most:
                return
            found = self._claim(partial(verb, held=len(claims)), tries=COMPANION_TRIES)
            if found is None:
                return
            claims.append(found)

    def _work(self, leader: queue.Claim) -> None:
        claims, group = [leader], None
        self._context = self._context._replace(threads=self._threads or self._part_of_cores())
        try:
            self._gather(leader, claims)
            group = TrainerGroup(claims, self._context)
            group.run()
        except Exception as error:  # noqa: BLE001 - an error with some jobs must not end the worker
            jobs = ", ".join(str(claim.lease.job_id) for claim in claims)
            self._say(LogLine(f"job {jobs}: an error in the supervisor:\n{traceback.format_exc()}", level="error"))
            (group or TrainerGroup(claims, self._context)).give_up(error)

    def _part_of_cores(self) -> int:
        on_host = on_machine = 1
        with suppress(StorageError):
            on_host, on_machine = workers.counts_beside(self._engine, self._worker)
        return part_of_cores(on_host=on_host, on_machine=on_machine)

    def _tick(self) -> int:
        """Do the housekeeping that is due; return how often this worker was told to stop."""
        self._follow(self._housekeeping.run_if_due())
        return self._stops

    @property
    def _is_leaving(self) -> bool:
        """Say whether nothing more is to be claimed."""
        return self._stops > 0 or self._is_draining

    def _follow(self, desired: workers.Desired) -> None:
        """Stop or drain, once, where the desired state of this worker says so."""
        if desired == "stop" and not self._stops:
            gone = self._housekeeping.gone
            why = LogLine(f"the database is gone: {gone}", level="error") if gone else "asked to stop"
            self._say(f"{why}: running jobs write a checkpoint")
            self.stop()
        elif desired == "drain" and not self._is_leaving:
            self._say("asked to drain: running jobs are finished, and no more are claimed")
            self._is_draining = True

    def _empty(self) -> bool:
        try:
            return queue.is_done(self._engine)
        except StorageError as error:
            self._housekeeping.note_outage(error)
            return False


def this_worker(name: str | None, *, pid: int, device: str) -> queue.Worker:
    """Return who this process is in the database."""
    host = socket.gethostname()
    return queue.Worker(name=name or f"{host}-{pid}", host=host, pid=pid, device=device, machine=machine_id())
