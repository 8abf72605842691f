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


class Status(NamedTuple):
    """How far the trainer is."""

    tokens_seen: int = 0
    tokens_per_second: float | None = None


class HeldLease:
    """One lease while this worker holds it. Any call may raise LeaseLost: then nothing more may be written."""

    def __init__(
        self, engine: Engine, lease: queue.Lease, settings: Settings, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Take over the lease of a claim that was just made."""
        self.lease = lease
        self.desired: queue.Desired = "run"
        self._engine, self._settings, self._now = engine, settings, now
        bound = EMBEDDED_HEARTBEAT_SECONDS if settings.embedded else SERVICE_HEARTBEAT_SECONDS
        self._every = min(settings.heartbeat_seconds, bound)
        self._due_at = self._try_at = now()
        self.refused_at = float("-inf")
        """When the database last did not answer."""
        self._away_since: float | None = None
        self._waiting: deque[Write] = deque()

    @property
    def away_seconds(self) -> float:
        """Return for how long the database has not answered; 0 when it did last time."""
        return 0.0 if self._away_since is None else self._now() - self._away_since

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
        while self._waiting and self._now() >= self._try_at:
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
        if self._now() < max(self._due_at, self._try_at):
            return self.desired
        self._due_at = self._now() + self._every
        if self._reach(lambda engine, lease: self._renew(engine, lease, status)):
            self.flush()
        return self.desired

    def settle(self, *, patience: Callable[[], bool], pause: Callable[[float], object] = time.sleep) -> bool:
        """Write all that waits; try again while `patience()` is true. Say whether it is written."""
        self._try_at = self._now()
        while not self.flush():
            if not patience():
                return False
            pause(min(RETRY_SECONDS, self._every))
        return True

    def _renew(self, engine: Engine, lease: queue.Lease, status: Status) -> None:
        self.desired = queue.heartbeat(engine, lease, lease_seconds=self._settings.lease_seconds, **status._asdict())

    def _reach(self, write: Write) -> bool:
        began = self._now()
        try:
            write(self._engine, self.lease)
        except StorageError:
            self.refused_at = self._now()
            if self._away_since is None:
                self._away_since = self.refused_at
            pause = max(min(RETRY_SECONDS, self._every), WAITED_SHARE * (self.refused_at - began))
            self._try_at = self.refused_at + pause
            return False
        self._away_since = None
        return True
