"""MLflow beside the training: a thread that projects changed jobs, and pauses while the store does not answer."""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from sqlalchemy import Engine, select

from orchestrator.database.engine import reading
from orchestrator.database.models import Job, SweepRow
from orchestrator.errors import NotFound
from orchestrator.masking import mask
from orchestrator.settings import Settings
from worker.tracking.job_runs import Projection

SHIP_SECONDS = 2.0
BREAK_SECONDS, LONGEST_BREAK_SECONDS = 15.0, 300.0
MOST_CHANGED = 10_000


class Tracking:
    """Projects jobs into MLflow in a thread of its own. No call of it raises or blocks, but for `close`."""

    def __init__(self, engine: Engine, settings: Settings, *, say: Callable[[str], None]) -> None:
        """Start the thread; MLflow itself is loaded there."""
        self._engine, self._settings, self._say = engine, settings, say
        self._ids: SimpleQueue[int | None] = SimpleQueue()
        self._projection: Projection | None = None
        self._changed: dict[int, None] = {}
        self._break, self._resume_at = 0.0, 0.0
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def changed(self, job_id: int) -> None:
        """Queue a job whose rows have changed."""
        self._ids.put(job_id)

    def close(self, timeout: float) -> bool:
        """Project what is left within so many seconds; say whether all of it was."""
        self._ids.put(None)
        self._thread.join(timeout)
        done = not self._thread.is_alive() and not self._changed
        if not done:
            self._say("tracking: MLflow lacks the latest of this worker; bring it up with: orch tracking sync SWEEP")
        return done

    def _run(self) -> None:
        seconds, going = 0.0, True  # the first job is told of at once: MLflow is loaded while a trainer loads torch
        while going:
            going = self._collect(seconds)
            if not going or time.monotonic() >= self._resume_at:
                self._ship()
            seconds = SHIP_SECONDS

    def _collect(self, seconds: float) -> bool:
        """Collect the ids of changed jobs for so many seconds after the first one; return False at the end."""
        ends_at = time.monotonic() + seconds if self._changed else None
        while True:
            try:
                job_id = self._ids.get(timeout=None if ends_at is None else max(0.0, ends_at - time.monotonic()))
            except Empty:
                return True
            if job_id is None:
                return False
            if ends_at is None:
                ends_at = time.monotonic() + seconds
            if len(self._changed) < MOST_CHANGED:
                self._changed[job_id] = None

    def _ship(self) -> None:
        while self._changed:
            job_id = next(iter(self._changed))
            try:
                self._projection = self._projection or self._connected()
                self._projection.project(job_id)
            except Exception as error:  # noqa: BLE001 - a tracking store may fail in any way; training goes on
                self._pause(error)
                # To the end of the line: the error may be of this job's run alone.
                self._changed[job_id] = self._changed.pop(job_id)
                self._projection = None
                return
            self._break = 0.0
            del self._changed[job_id]

    def _connected(self) -> Projection:
        """Connect with the store; one that was damaged and is made anew gets all jobs again."""
        projection = Projection(self._engine, self._settings)
        if projection.set_aside is not None:
            self._say(f"tracking: MLflow's store was damaged; it is made anew, the old one is {projection.set_aside}")
            with reading(self._engine) as session:
                tried = select(Job.id).where(Job.attempt > 0).order_by(Job.id.desc()).limit(MOST_CHANGED)
                self._changed |= dict.fromkeys(session.scalars(tried))
        return projection

    def _pause(self, error: Exception) -> None:
        if not self._break:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._say(f"tracking: MLflow does not take what it is given ({mask(first)[:200]}); training goes on")
        self._break = min(LONGEST_BREAK_SECONDS, 2 * self._break or BREAK_SECONDS)
        self._resume_at = time.monotonic() + self._break


def sync(engine: Engine, settings: Settings, sweep: str, *, jobs: bool = True) -> int:
    """Rebuild in MLflow what is missing of a sweep, its fits too; return its number of jobs, or without them of fits.

    Raises:
        NotFound: there is no such sweep.
    """
    from worker.tracking.fit_runs import project_fits  # with it come numpy, scipy and the figures: no worker needs them

    with reading(engine) as session:
        if session.scalar(select(SweepRow.id).filter_by(name=sweep)) is None:
            known = ", ".join(session.scalars(select(SweepRow.name).order_by(SweepRow.id.desc()).limit(5)))
            raise NotFound(f"there is no sweep {sweep!r}", hint=f"Newest sweeps: {known}" if known else "")
        mine = (SweepRow.name == sweep, Job.hidden.is_distinct_from("deleted"))
        ids = [*session.scalars(select(Job.id).join(SweepRow).where(*mine).order_by(Job.id))]
    if jobs:
        projection = Projection(engine, settings)
        for job_id in ids:
            projection.project(job_id)
    fits = project_fits(engine, settings, sweep)
    return len(ids) if jobs else fits
