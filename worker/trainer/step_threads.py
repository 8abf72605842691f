"""Who takes the steps of jobs that share a trainer: small ones one thread each, side by side where that gains."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType

import torch

from orchestrator.estimates.memory import BESIDE_JOBS
from worker.trainer.job import JobTraining

StepJob = Callable[[JobTraining], str | None]
"""Takes a job's step; returns its outcome, once there is one."""


class StepThreads:
    """Threads of this process that take small steps side by side, where those let other Python threads run.

    A small step gains nothing from a second thread: on two cores that wake each other for every operation, (D, n, B) =
    (128, 512, 256) took 4.5 ms before there were kernels in C, on one of them 1.9. It has one in any company, so that
    its numbers do not depend on it.
    """

    def __init__(self, threads: int) -> None:
        """Start no thread yet."""
        self._pool = ThreadPoolExecutor(min(threads, BESIDE_JOBS), "steps")

    def __enter__(self) -> "StepThreads":
        """Give the threads."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End them; no step is left undone."""
        self._pool.shutdown()

    def take(
        self, jobs: Sequence[JobTraining], step: StepJob
    ) -> Iterator[tuple[JobTraining, Callable[[], str | None]]]:
        """Yield each job with a function that returns the outcome of its step, or raises what the step raised."""
        beside = sorted((job for job in jobs if job.gains_beside), key=lambda job: -job.n_latents)  # longest first
        begun = {job.job_id: self._pool.submit(_here, step, job) for job in beside} if len(beside) > 1 else {}
        for job in jobs:
            yield job, begun[job.job_id].result if job.job_id in begun else partial(_here, step, job)


def _here(step: StepJob, job: JobTraining) -> str | None:
    """Take a step in this thread, a small one without others of torch's."""
    # Asked before it is set: a thread's first operation would set it to what other threads have.
    before = torch.get_num_threads()
    if job.is_small:
        torch.set_num_threads(1)
    try:
        return step(job)
    finally:
        torch.set_num_threads(before)
