"""The search for learning rates, on loss surfaces of known shape: jobs are played, in lockstep."""

import math
from dataclasses import replace

import pytest

from orchestrator.scaling.plan.lr_search import MOST_RATES, Rate, Step, next_step
from orchestrator.scaling.types import JobMeasurement
from tests.made_fits import grid, measured

AUTO = 8.41e-3
BUDGET = 2**20
GRID = grid(BUDGET)


class Laboratory:
    """Jobs whose loss tends to a parabola in log lr, reached the faster the higher the rate; some diverge."""

    def __init__(self, *, best: float, diverges: float, width: float = 0.05, b: float = 1.0, slow: int = 2**11) -> None:
        self.best, self.diverges, self.width, self.b, self.slow = best, diverges, width, b, slow
        self.jobs: dict[int, JobMeasurement] = {}
        self.cancelled: list[int] = []
        self.fails: set[float] = set()

    def enqueue(self, rate: Rate) -> None:
        job_id = len(self.jobs) + 1
        assert all((job.n_latents, job.k, job.lr) != rate for job in self.jobs.values()), "a rate is tried twice"
        row = measured(job_id, n_latents=rate.n_latents, k=rate.k, lr=rate.lr, lr_is_auto=rate.lr is None,
                       state="queued", outcome=None, max_tokens=BUDGET)  # fmt: skip
        self.jobs[job_id] = row

    def curve(self, lr: float, points: int) -> list[tuple[int, float]]:
        floor = 0.2 * (1 + self.width * math.log2(lr / self.best) ** 2)
        return [(t, floor * (1 + (t / self.slow * lr / AUTO) ** -self.b)) for t in GRID[:points]]

    def advance(self) -> None:
        """Take every job one point further."""
        for job in [job for job in self.jobs.values() if job.state in {"queued", "running"}]:
            lr = job.lr or AUTO
            if lr in self.fails:
                self.jobs[job.job_id] = replace(job, state="failed", reason="Boom", lr=lr)
                continue
            points = len(job.curve) + 1
            row = measured(job.job_id, self.curve(lr, points), n_latents=job.n_latents, k=job.k, lr=lr, state="running",
                           outcome=None, max_tokens=BUDGET)  # fmt: skip
            if lr >= self.diverges and points == 6:
                row = replace(row, state="succeeded", outcome="diverged", fvu=None)
            elif points == len(GRID):
                row = replace(row, state="succeeded", outcome="converged" if lr >= AUTO / 5 else "max_tokens")
            self.jobs[job.job_id] = row

    def run(self, sizes: tuple[tuple[int, int], ...] = ((256, 8),)) -> Step:
        for _ in range(2000):
            step = next_step([*self.jobs.values()], sizes=sizes)
            for rate in step.enqueue:
                self.enqueue(rate)
            for job_id in step.cancel:
                assert self.jobs[job_id].state == "running"
                self.jobs[job_id] = replace(self.jobs[job_id], state="cancelled")
                self.cancelled.append(job_id)
            if step.is_done:
                assert not step.enqueue
                return step
            self.advance()
        raise AssertionError("the search does not end")


@pytest.mark.parametrize("best", [AUTO / 8, AUTO / 2, AUTO, 2 * AUTO, 4 * AUTO])
@pytest.mark.parametrize("diverges", [16 * AUTO, 8 * AUTO])
def test_it_brackets_the_best_and_the_largest_within_the_jobs_that_takes(best: float, diverges: float) -> None:
    laboratory = Laboratory(best=best, diverges=diverges)
    found = laboratory.run().found[256, 8]
    assert found.is_bracketed
    assert found.best == pytest.approx(best, rel=1e-3)
    assert found.largest_converging == pytest.approx(diverges / 2, rel=1e-3)
    lowest, highest = min(best, AUTO) / 2, diverges
    assert len(laboratory.jobs) <= math.log2(highest / lowest) + 1.5, "every rate between, and no other"
    rates = [one.lr for one in found.tried]
    assert rates == sorted(rates, key=lambda lr: lr or 0)


def test_what_cannot_catch_up_is_given_up() -> None:
    laboratory = Laboratory(best=2 * AUTO, diverges=1.0, width=0.4, b=2.0, slow=2**14)
    found = laboratory.run().found[256, 8]
    assert found.is_bracketed
    assert found.best == pytest.approx(2 * AUTO, rel=1e-3)
    outcomes = {round(math.log2((one.lr or 0) / AUTO)): one.outcome for one in found.tried}
    assert outcomes[-1] == "given up"
    assert laboratory.cancelled
    for job_id in laboratory.cancelled:
        assert BUDGET / 8 <= laboratory.jobs[job_id].tokens_seen < BUDGET, "after the first rung, before the end"
    assert found.largest_converging == pytest.approx(16 * AUTO, rel=1e-3), "with an fvu of 0.92; the next has 1.5"


def test_a_job_that_may_still_win_is_not_given_up() -> None:
    slow = Laboratory(best=AUTO / 2, diverges=1.0, width=0.06, b=0.5, slow=2**14)
    slow.run()
    best = next(job for job in slow.jobs.values() if job.lr == pytest.approx(AUTO / 2, rel=1e-3))
    early = len([t for t in GRID if t <= BUDGET / 8])
    assert slow.curve(AUTO, early)[-1][1] < slow.curve(AUTO / 2, early)[-1][1], "it was behind at the first rung"
    assert best.job_id not in slow.cancelled


def test_it_starts_from_auto_and_then_has_a_neighbour_on_each_side() -> None:
    assert next_step([], sizes=[(256, 8)]).enqueue == (Rate(256, 8, None),)
    queued = measured(1, lr=None, lr_is_auto=True, state="queued", outcome=None)
    assert next_step([queued]).enqueue == (), "nobody knows yet what auto comes to"
    told = replace(queued, lr=AUTO, state="running")
    assert next_step([told]).enqueue == (Rate(256, 8, 4.205e-3), Rate(256, 8, 1.682e-2))
    assert next_step([]) == Step((), (), {})


def test_sizes_are_searched_apart_and_the_lowest_seed_alone() -> None:
    sizes = ((256, 8), (256, 16), (512, 8))
    step = Laboratory(best=AUTO, diverges=4 * AUTO).run(sizes)
    assert set(step.found) == set(sizes)
    assert all(found.best == AUTO for found in step.found.values())
    other_seed = measured(99, [(t, 0.01) for t in GRID], lr=1.0, seed=1)
    laboratory = Laboratory(best=AUTO, diverges=4 * AUTO)
    laboratory.run()
    again = next_step([*laboratory.jobs.values(), other_seed])
    assert again.found[256, 8].best == AUTO
    assert again.is_done


def test_a_failed_job_stops_the_search_with_what_to_do() -> None:
    laboratory = Laboratory(best=AUTO, diverges=4 * AUTO)
    laboratory.fails = {1.682e-2}
    found = laboratory.run().found[256, 8]
    assert not found.is_bracketed
    assert found.trouble == "job 3 failed: orch retry 3"


def test_an_auto_that_was_cancelled_before_it_told_its_rate() -> None:
    found = next_step([measured(1, lr=None, lr_is_auto=True, state="cancelled", outcome=None)]).found[256, 8]
    assert "orch retry 1" in found.trouble


def test_where_everything_diverges_it_goes_down_and_gives_up_in_the_end() -> None:
    laboratory = Laboratory(best=AUTO, diverges=0.0)
    found = laboratory.run().found[256, 8]
    assert (found.best, found.largest_converging, found.is_bracketed) == (None, None, False)
    assert found.trouble == f"not bracketed within {MOST_RATES} rates"
    assert len(laboratory.jobs) == MOST_RATES


def test_it_goes_on_from_rates_that_are_there_already() -> None:
    laboratory = Laboratory(best=1e-3, diverges=9e-3)
    for lr in (5e-4, 1e-3, 2e-3):
        laboratory.enqueue(Rate(256, 8, lr))
    found = laboratory.run().found[256, 8]
    assert found.best == 1e-3
    assert sorted(job.lr or 0 for job in laboratory.jobs.values())[:3] == [5e-4, 1e-3, 2e-3], "none is added below"


def test_the_same_rows_in_any_order_give_the_same_step() -> None:
    laboratory = Laboratory(best=2 * AUTO, diverges=8 * AUTO)
    laboratory.run()
    rows = [*laboratory.jobs.values()][:4]
    assert next_step(rows) == next_step(rows[::-1])
