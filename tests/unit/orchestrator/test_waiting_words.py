"""Messages that name a number of jobs, of one and of several."""

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.waiting import fault_of
from worker.protocol import Started, describe


def _row(number: int, state: str) -> Any:
    return SimpleNamespace(id=number, state=state, reason=None)


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["failed"], "1 of 1 job failed (job 1)"),
        (["failed", "failed"], "2 of 2 jobs failed (jobs 1, 2)"),
        (["cancelled"], "1 of 1 job was cancelled (job 1)"),
        (["cancelled", "cancelled", "succeeded"], "2 of 3 jobs were cancelled (jobs 1, 2)"),
    ],
)
def test_jobs_that_ended_without_a_result(states: list[str], said: str) -> None:
    fault = fault_of([_row(number, state) for number, state in enumerate(states, 1)])
    assert fault is not None
    assert fault.message == said


@pytest.mark.parametrize(("threads", "said"), [(1, "cpu, 1 thread"), (4, "cpu, 4 threads")])
def test_the_threads_of_a_trainer(threads: int, said: str) -> None:
    assert describe(Started(0, {"threads": threads})) == f"evaluating on {said}"


@pytest.mark.parametrize(("lr", "said"), [(0.002965786350990536, "0.002966"), (0.04, "0.04")])
def test_a_learning_rate_has_four_digits(lr: float, said: str) -> None:
    facts = {"threads": 2, "n_latents": 16, "k": 4, "d_model": 128, "lr": lr}
    sizes = f"n_latents 16, k 4, d_model 128, lr {said}"
    assert describe(Started(0, facts)) == f"training from 0 tokens on cpu, 2 threads: {sizes}"
