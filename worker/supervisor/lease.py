"""A held lease: heartbeats, and every write of an attempt in order, also over an outage of the database."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.errors import StorageError
from orchestrator.settings import Settings

Write = Callable[[Engine, queue.Lease], object]

EMBEDDED_HEARTBEAT_SECONDS = 2.0
SERVICE_HEARTBEAT_SECONDS = 5.0
"""Upper bounds of the setting: `orch status` shows what the last heartbeat told, and a cancel waits for the next."""
RETRY_SECONDS = 2.0
WAITED_SHARE = 4.0
"""How much longer than it was waited for a server that did not answer is left alone: the trainer is listened to."""
MOST_OF_A_LEASE = 1 / 6
"""That is left alone at most: a server that is back must hear of the leases while they last."""


class Status(NamedTuple):
    """How far the trainer is."""

    tokens_seen: int = 0
    tokens_per_second: float | None = None


class Outage:
    """Since when the database has not answered, and when to try it again: one for all the leases of a trainer.

    A wait for a server that is gone may take seconds (a name that resolves no more took 10 s), and must not be
    multiplied by the jobs.
    """

    def __init__(self) -> None:
        """Begin without one."""
        self.since: float | None = None
        self.try_at = float("-inf")


class HeldLease:
    """One lease while this worker holds it. Any call may raise LeaseLost: then nothing more may be written."""

    def __init__(
        self,
        engine: Engine,
        lease: queue.Lease,
        settings: Settings,
        *,
        outage: Outage | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take over the lease of a claim that was just made; `outage` is shared with the leases beside it."""
        self.lease = lease
        self.desired: queue.Desired = "run"
        self._engine, self._settings, self._now = engine, settings, now
        bound = EMBEDDED_HEARTBEAT_SECONDS if settings.embedded else SERVICE_HEARTBEAT_SECONDS
        self._every = min(settings.heartbeat_seconds, bound)
        self._due_at = now()
        self._outage = outage or Outage()
        self._waiting: deque[Write] = deque()

    @property
    def away_seconds(self) -> float:
        """Return for how long the database has not answered; 0 when it did last time."""
        return 0.0 if self._outage.since is None else self._now() - self._outage.since

    @property
    def is_written(self) -> bool:
        """Say whether nothing waits to be written."""
        return not self._waiting

    def write(self, write: Write) -> None:
        """Write now, or as soon as the database answers; never out of order."""
        self._waiting.append(write)
        self.flush()

    def flush(self) -> bool:
        """Write what waits; say whether all of it is written. A write that raises is not tried again."""
        while self._waiting and self._now() >= self._outage.try_at:
            write = self._waiting.popleft()
            if not self._reach(write):
                self._waiting.appendleft(write)
                return False
        return not self._waiting

    def forget(self) -> None:
        """Drop what waits to be written."""
        self._waiting.clear()

    def heartbeat(self, status: Status) -> queue.Desired:
        """Renew the lease if it is time to, and return the desired state of the job."""
        if self._now() < max(self._due_at, self._outage.try_at):
            return self.desired
        self._due_at = self._now() + self._every
        if self._reach(lambda engine, lease: self._renew(engine, lease, status)):
            self.flush()
        return self.desired

    def settle(self, *, patience: Callable[[], bool], pause: Callable[[float], object] = time.sleep) -> bool:
        """Write all that waits, over an outage while `patience()` is true; say whether it is written.

        A server that another lease found away a moment ago is tried again out of patience alone.
        """
        while self._waiting and (self._now() >= self._outage.try_at or patience()):
            self._outage.try_at = self._now()
            if not self.flush():
                pause(min(RETRY_SECONDS, self._every))
        return self.is_written

    def _renew(self, engine: Engine, lease: queue.Lease, status: Status) -> None:
        self.desired = queue.heartbeat(engine, lease, lease_seconds=self._settings.lease_seconds, **status._asdict())

    def _reach(self, write: Write) -> bool:
        began = self._now()
        try:
            write(self._engine, self.lease)
        except StorageError:
            now = self._now()
            if self._outage.since is None:
                self._outage.since = now
            longest = MOST_OF_A_LEASE * self._settings.lease_seconds
            self._outage.try_at = now + max(min(RETRY_SECONDS, self._every), min(longest, WAITED_SHARE * (now - began)))
            return False
        self._outage.since = None
        return True
