"""What a worker does from time to time beside its jobs: it says that it lives, and releases what others left behind."""

import math
import time
from collections.abc import Callable

from sqlalchemy import Engine

from orchestrator import dispatch
from orchestrator.errors import StorageError
from orchestrator.queue import Worker, roster
from orchestrator.settings import Settings
from worker.presence import Presence
from worker.voice import Remark

LEAST_REPORT_SECONDS = 1.0
"""However often there are rounds: a report is a write, and nobody's job waits for it."""


class Rounds:
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
        self._wish: roster.Wish = "run"
        self._away = False
        self._due_at = self._judge_at = self._report_at = 0.0
        self._looked_at = -math.inf

    def make(self) -> roster.Wish:
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
            self._say(Remark(f"{error.message}; trying again", level="warning"))
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
            self._say(Remark("its worker fell silent; released", prefix=prefix, level="warning", job=job_id))
            self._changed(job_id)
