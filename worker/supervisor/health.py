"""Whether this worker's machine can do its work: what failed, when to look again, which jobs to leave to others."""

import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from orchestrator.diagnosis.checks import check_for_worker
from orchestrator.diagnosis.finding import Finding
from orchestrator.settings import Settings
from worker.supervisor.log import LogLine

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 600.0
"""Between two looks at a machine that is unwell: doubled each time."""
FIRST_REFUSAL_SECONDS, LONGEST_REFUSAL_SECONDS = 300.0, 3600.0
"""For which a job that cannot be served here alone is left to others; any other one is for a pause first."""
MOST_IN_ROW = 3
"""Jobs that could not be served, one after another, before the machine counts as unwell whatever the checks say."""
CHECK_SECONDS = 20.0
"""A check that has not come back by then has found a disk that does not answer."""


class Health:
    """Counts the faults of this machine. `reason` says why nothing is claimed; None: all is well."""

    def __init__(
        self,
        settings: Settings,
        *,
        say: Callable[[str], None],
        check: Callable[[Settings], Finding | None] = check_for_worker,
    ) -> None:
        """Begin well: a worker starts only where the checks have passed."""
        self._settings, self._say, self._check = settings, say, check
        self.reason: str | None = None
        self._in_row = self._pauses = 0
        self._fault_of, self._is_on_trial = "", False
        self._look_at = 0.0
        self._refused: dict[int, tuple[float, float]] = {}
        """By job: until when it is left to others, and for how long that is."""

    @property
    def refused(self) -> list[int]:
        """Return the jobs that are to be left to others for now."""
        return [job_id for job_id, (until, _) in self._refused.items() if until > time.monotonic()]

    def fault(self, job_id: int, error: str, *, is_of_job_alone: bool = False) -> None:
        """Note that a job could not be served; `is_of_job_alone`: others may well be."""
        first = FIRST_REFUSAL_SECONDS if is_of_job_alone else FIRST_PAUSE_SECONDS
        _, last = self._refused.get(job_id, (0.0, first / 2))
        pause = min(LONGEST_REFUSAL_SECONDS, 2 * last)
        self._refused[job_id] = time.monotonic() + pause, pause
        if is_of_job_alone:
            return
        self._in_row += 1
        found = self._look()
        if found is not None:
            self._fall_ill(found.name, f"{found.name}: {found.text}")
        elif self._is_on_trial or self._in_row >= MOST_IN_ROW:
            self._fall_ill("jobs", f"{self._in_row} jobs in a row could not be served here, the last one for: {error}")

    def served(self, job_id: int) -> None:
        """Note that a job was served."""
        self._in_row = self._pauses = 0
        self._is_on_trial = False
        self._refused.pop(job_id, None)

    def may_claim(self) -> bool:
        """Say whether to claim; a machine that is unwell is looked at again when it is time to."""
        if self.reason is None:
            return True
        if time.monotonic() < self._look_at:
            return False
        found = self._look()
        if found is not None:
            self._fall_ill(found.name, f"{found.name}: {found.text}")
            return False
        self._say(f"well again, and claims jobs. It had claimed none because of this: {self.reason}")
        self.reason, self._fault_of = None, ""
        self._is_on_trial = self._in_row > 0  # the next fault without a success between makes it unwell again
        return True

    def _fall_ill(self, fault_of: str, reason: str) -> None:
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0**self._pauses)
        self._pauses += 1
        self._look_at = time.monotonic() + pause
        before, self._fault_of, self.reason = self._fault_of, fault_of, reason
        if before != fault_of:  # figures in the text may change with every look
            said = f"unwell, and claims nothing: {self.reason}; it looks again in {pause:g} s, and then less often"
            self._say(LogLine(said, level="error"))

    def _look(self) -> Finding | None:
        """Return the first check that fails. They run in a thread of their own: a disk may never answer."""
        answers: SimpleQueue[Finding | None] = SimpleQueue()
        check = threading.Thread(target=lambda: answers.put(self._check(self._settings)), name="health", daemon=True)
        check.start()
        try:
            return answers.get(timeout=CHECK_SECONDS)
        except Empty:
            text = f"a folder of {self._settings.home} or {self._settings.artifacts_folder} does not answer"
            return Finding("FAIL", "disk", f"{text} within {CHECK_SECONDS:g} s")
