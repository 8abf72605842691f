"""Who takes the steps of jobs that share a trainer, and with how many threads."""

import threading
from typing import NamedTuple

import pytest
import torch

from worker.trainer.step_threads import StepThreads

pytestmark = pytest.mark.usefixtures("two_threads")


class FakeJob(NamedTuple):
    job_id: int
    is_small: bool
    gains_beside: bool
    n_latents: int = 64


def _taken(jobs: list[FakeJob]) -> dict[int, tuple[str, int, int]]:
    """Return which thread took each job's step, and how many threads torch had before and after an operation there."""
    found = {}

    def step(job: FakeJob) -> None:
        before = torch.get_num_threads()
        torch.randn(600, 600).sum()
        found[job.job_id] = threading.current_thread().name, before, torch.get_num_threads()

    with StepThreads(2) as threads:
        for _ in range(3):
            for _, outcome in threads.take(jobs, step):  # type: ignore[arg-type]
                outcome()
            assert torch.get_num_threads() == 2
    return found


def test_a_small_step_has_one_thread_wherever_it_is_taken() -> None:
    jobs = [FakeJob(1, True, True), FakeJob(2, True, True), FakeJob(3, True, False), FakeJob(4, False, False)]
    found = _taken(jobs)
    here = threading.current_thread().name
    assert [name == here for name, _, _ in (found[i] for i in (1, 2, 3, 4))] == [False, False, True, True]
    assert [found[i][1:] for i in (1, 2, 3, 4)] == [(1, 1), (1, 1), (1, 1), (2, 2)]


def test_one_job_alone_is_not_taken_aside() -> None:
    assert _taken([FakeJob(1, True, True), FakeJob(2, True, False)])[1][0] == threading.current_thread().name


def test_the_longest_steps_begin_first_and_outcomes_are_in_the_order_of_the_jobs() -> None:
    begun = []
    jobs = [FakeJob(i, True, True, n_latents=64 * i) for i in (1, 3, 2)]
    with StepThreads(1) as threads:
        assert [job for job, _ in threads.take(jobs, lambda job: begun.append(job.job_id))] == jobs  # type: ignore
    assert begun == [3, 2, 1]


def test_what_a_step_raises_is_raised_where_its_outcome_is_asked() -> None:
    def step(job: FakeJob) -> None:
        if job.job_id == 1:
            raise ValueError("job 1")

    jobs = [FakeJob(1, True, True), FakeJob(2, True, True)]
    with StepThreads(2) as threads:
        (_, first), (_, second) = threads.take(jobs, step)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="job 1"):
            first()
        assert second() is None
