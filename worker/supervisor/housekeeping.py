"""What a worker does from time to time beside its jobs: it reports that it is running, and releases expired leases."""

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
from worker.supervisor.database_identity import DatabaseIdentity
from worker.supervisor.log import LogLine

LEAST_REPORT_SECONDS = 1.0
"""Between two reports, however short reconcile_seconds is: a report is a write, and no job waits for it."""


class Housekeeping:
    """The periodic duties of one worker, and whether the database answers it. Nothing here raises StorageError."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        worker: Worker,
        *,
        say: Callable[[str], None],
        changed: Callable[[int], None],
    ) -> None:
        """Prepare; everything is due at once. `changed` is called with the id of each job that was released."""
        self._engine, self._settings, self._worker, self._say, self._changed = engine, settings, worker, say, changed
        self._token, self._version = uuid.uuid4().hex, versions().get("orch", "unknown")
        self._report_every = max(settings.reconcile_seconds, LEAST_REPORT_SECONDS)
        self._report_at, self._reported_at = 0.0, -math.inf
        self._desired: workers.Desired = "run"
        self._unwell: str | None = None
        self._identity = DatabaseIdentity(engine)
        self.gone: str | None = None
        """What has become of the database that this worker began with; None: it is there."""
        self._is_away = False
        self._due_at = self._release_at = 0.0
        self._called_at = -math.inf

    def run_if_due(self) -> workers.Desired:
        """Report and reconcile where it is time to; return the desired state of this worker as last read."""
        now = time.monotonic()
        since_last, self._called_at = now - self._called_at, now
        if since_last > self._settings.lease_seconds / 2:
            # Just started, suspended, or hung: other workers may have been too, and need time to renew their leases.
            self._release_at = now + self._settings.lease_seconds
        if now >= self._due_at:
            self._run()
            took = time.monotonic() - now
            self._due_at = now + max(self._settings.reconcile_seconds, 5 * took if self._is_away else 0.0)
        return self._desired

    def tell(self, *, unwell: str | None) -> None:
        """Report at once where what is wrong with this machine has changed."""
        if unwell != self._unwell:
            self._unwell, self._report_at = unwell, 0.0
            self._run()

    def note_outage(self, error: StorageError) -> None:
        """Log that the database does not answer, once."""
        if not self._is_away:
            self._say(LogLine(f"{error.message}; trying again", level="warning"))
        self._is_away = True

    def note_answer(self) -> None:
        """Note that the database answers. After an outage every lease looks expired: none is released for one lease."""
        if self._is_away:
            self._say("the database answers again")
            self._release_at = time.monotonic() + self._settings.lease_seconds
        self._is_away = False

    def end(self) -> None:
        """Note in the registry that this worker has ended, if the database answers."""
        with suppress(StorageError):
            if self.gone:
                return
            workers.sign_off(self._engine, self._token)

    def _run(self) -> None:
        try:
            self.gone = self.gone or self._identity.change()
            if self.gone:
                self._desired = "stop"
                return
            if time.monotonic() >= self._report_at:
                self._report()
            release = not self._is_away and time.monotonic() >= self._release_at
            released = dispatch.reconcile(self._engine, self._settings, release=release).released
        except StorageError as error:
            self.note_outage(error)
            return
        self.note_answer()
        for job_id in released:
            prefix = f"job {job_id}: "
            self._say(LogLine("its worker fell silent; released", prefix=prefix, level="warning", job=job_id))
            self._changed(job_id)

    def _report(self) -> None:
        now = time.monotonic()
        self._desired = workers.report(
            self._engine, self._worker, token=self._token, version=self._version, every_seconds=self._report_every,
            elapsed=now - self._reported_at if math.isfinite(self._reported_at) else None, unwell=self._unwell,
        )  # fmt: skip
        self._reported_at, self._report_at = now, time.monotonic() + self._report_every
