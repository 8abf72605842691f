"""What a worker does from time to time beside its jobs: it says that it lives, and releases what others left behind."""

import math
import time
import uuid
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Engine

from orchestrator import dispatch
from orchestrator.errors import StorageError
from orchestrator.queue import Worker, workers
from orchestrator.settings import Settings
from orchestrator.versions import versions
from worker.supervisor.log import LogLine


class Presence:
    """One life of a worker in the roster. Nothing of it stops a worker: the roster is for people."""

    def __init__(self, engine: Engine, worker: Worker, *, every_seconds: float) -> None:
        """Prepare; the first report registers it."""
        self._engine, self._worker, self._every = engine, worker, every_seconds
        self._token, self._version = uuid.uuid4().hex, versions().get("orch", "unknown")
        self._reported_at: float | None = None

    def report(self) -> workers.Wish:
        """Say that it lives, and return what a person wants of it.

        Raises:
            StorageError: the database did not answer.
        """
        now = time.monotonic()
        elapsed = None if self._reported_at is None else now - self._reported_at
        life = {"token": self._token, "version": self._version}
        wish = workers.report(self._engine, self._worker, **life, every_seconds=self._every, elapsed=elapsed)
        self._reported_at = now
        return wish

    def end(self) -> None:
        """Note its end, if the database answers."""
        with suppress(StorageError):
            workers.sign_off(self._engine, self._token)


LEAST_REPORT_SECONDS = 1.0
"""However often there are rounds: a report is a write, and nobody's job waits for it."""


class Housekeeping:
    """The rounds of one worker, and whether the database answers it. Nothing here raises StorageError."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        worker: Worker,
        *,
        say: Callable[[str], None],
        changed: Callable[[int], None],
    ) -> None:
        """Prepare; the first round is due at once."""
        self._engine, self._settings, self._say, self._changed = engine, settings, say, changed
        self._report_every = max(settings.reconcile_seconds, LEAST_REPORT_SECONDS)
        self._presence = Presence(engine, worker, every_seconds=self._report_every)
        self._wish: workers.Wish = "run"
        self._away = False
        self._due_at = self._judge_at = self._report_at = 0.0
        self._looked_at = -math.inf

    def make(self) -> workers.Wish:
        """Make a round if it is time to; return what a person last wanted of this worker."""
        asleep, self._looked_at = time.monotonic() - self._looked_at, time.monotonic()
        if asleep > self._settings.lease_seconds / 2:  # just started, stopped, or hung: so may all have been
            self._judge_at = time.monotonic() + self._settings.lease_seconds
        if time.monotonic() >= self._due_at:
            self._due_at = time.monotonic() + self._settings.reconcile_seconds
            try:
                self._report()
                judge = not self._away and time.monotonic() >= self._judge_at
                done = dispatch.reconcile(self._engine, self._settings, judge=judge)
            except StorageError as error:
                self.lost_touch(error)
            else:
                self.in_touch()
                self._tell(done.released)
        return self._wish

    def lost_touch(self, error: StorageError) -> None:
        """Say that the database does not answer, once."""
        if not self._away:
            self._say(LogLine(f"{error.message}; trying again", level="warning"))
        self._away = True

    def in_touch(self) -> None:
        """After an outage every lease looks expired: wait a whole one before judging anybody."""
        if self._away:
            self._say("the database answers again")
            self._judge_at = time.monotonic() + self._settings.lease_seconds
        self._away = False

    def end(self) -> None:
        """Note that this worker has ended."""
        self._presence.end()

    def _report(self) -> None:
        if time.monotonic() >= self._report_at:
            self._wish = self._presence.report()
            self._report_at = time.monotonic() + self._report_every

    def _tell(self, released: list[int]) -> None:
        for job_id in released:
            prefix = f"job {job_id}: "
            self._say(LogLine("its worker fell silent; released", prefix=prefix, level="warning", job=job_id))
            self._changed(job_id)
