"""Wait for jobs to end: what `orch wait` and `import orch` share."""

import time
from collections.abc import Iterator, Sequence

from sqlalchemy import Engine

from orchestrator import results
from orchestrator.errors import JobCancelled, JobFailed, WaitTimedOut
from orchestrator.formatting import jobs_named, named
from orchestrator.job_states import TERMINAL
from orchestrator.results import JobRow

POLL_SECONDS = 0.5


def as_they_end(engine: Engine, ids: Sequence[int], *, timeout: float | None = None) -> Iterator[JobRow]:
    """Yield jobs as they end, those that have ended first; `timeout` in seconds.

    Raises:
        WaitTimedOut: some had not ended in time; says how many.
        StorageError: the database did not answer.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    left = set(ids)
    while left:
        ended = results.jobs(engine, ids=left, states=TERMINAL, kind=None)
        for row in ended:
            left.discard(row.id)
            yield row
        if left and not ended:
            seconds = POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if seconds <= 0:
                raise WaitTimedOut(
                    f"{len(left)} of {named(len(set(ids)), 'job')} had not ended in time", hint="orch status shows them"
                )
            time.sleep(min(POLL_SECONDS, seconds))


def fault_of(rows: Sequence[JobRow]) -> JobFailed | JobCancelled | None:
    """Return the error of jobs that ended without a result, failed ones first; None where all succeeded."""
    failed = [row for row in rows if row.state == "failed"]
    cancelled = [row.id for row in rows if row.state == "cancelled"]
    if failed:
        listed = jobs_named([row.id for row in failed], most=4)
        why = f"; job {failed[0].id}: {failed[0].reason}" if failed[0].reason else ""
        said = f"{len(failed)} of {named(len(rows), 'job')} failed ({listed}){why}"
        return JobFailed(said, hint=f"orch show {failed[0].id} says more, orch retry queues it again")
    if cancelled:
        were = "was" if len(cancelled) == 1 else "were"
        said = f"{len(cancelled)} of {named(len(rows), 'job')} {were} cancelled ({jobs_named(cancelled, most=4)})"
        return JobCancelled(said, hint="orch retry queues them again")
    return None
