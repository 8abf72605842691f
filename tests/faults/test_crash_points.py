"""A worker is killed before and after each of its commits: one result, attempts in order, nothing lost.

F1, F2, F7 and F8 are among these points: before and after the claim, before and after the end.
"""

from itertools import pairwise

import pytest
from sqlalchemy import func, select

from orchestrator.database.models import Attempt, Event, LeaseRow, ResultRow
from tests.faults.conftest import MakeWorld
from tests.faults.crashing import POINTS, VERBS
from tests.small_world import World, small_config, trainers

STEPS = 12
NEVER_ALONE = ("release", "fail")
"""Verbs that an undisturbed worker does not use."""


def provoke(world: World, verb: str) -> None:
    """Make the worker come to a verb."""
    worker = world.workers[-1]
    if verb in NEVER_ALONE:
        has_begun = select(Attempt.attempt).filter_by(pid=worker.pid).where(Attempt.tokens_start.is_not(None))
        world.wait(lambda: world.rows(has_begun))
        worker.terminate() if verb == "release" else trainers(worker)[0].kill()


@pytest.mark.parametrize("verb", VERBS)
def test_f01_f2_f7_f8_killed_before_and_after_a_commit(make_world: MakeWorld, verb: str) -> None:
    world = make_world(lease_seconds=2)
    quick = {"ORCH_TRAINER": "tests.faults.quick", "ORCH_STEPS": str(STEPS)}
    hold = world.settings.home / "hold"
    if verb in NEVER_ALONE:
        hold.touch()
    jobs = world.enqueue(*(small_config(world.settings.home, n_latents=n) for n in (32, 64)))
    for point in (f"before_{verb}_commit", f"after_{verb}_commit"):
        assert point in POINTS
        worker = world.work(module="tests.faults.crashing", **quick, ORCH_CRASH_AT=point, ORCH_HOLD=str(hold))
        provoke(world, verb)
        assert worker.wait(60) == -9, world.said()
        assert (world.settings.home / f"{point}.visited").exists()
    assert world.work("--until-empty", module="tests.faults.crashing", **quick).wait(120) == 0, world.said()
    for job in jobs:
        check(world, job)
    attempts = sum(len(world.attempts(job)) for job in jobs)
    assert attempts == {"claim": 3, "finish": 3}.get(verb, 4), [world.attempts(job) for job in jobs]
    assert world.rows(select(LeaseRow.job_id)) == []


def check(world: World, job: int) -> None:
    """One result of the last attempt, attempts 1, 2, ..., each begun after the last, and a whole curve."""
    assert world.job(job).state == "succeeded"
    rows = world.rows(select(Attempt.attempt, Attempt.started_at, Attempt.ended_at).filter_by(job_id=job))
    numbers = [row.attempt for row in rows]
    assert numbers == [*range(1, world.job(job).attempt + 1)]
    assert all(before.ended_at <= after.started_at for before, after in pairwise(rows))
    assert world.one(ResultRow, job_id=job).attempt == numbers[-1]
    assert [point[0] for point in world.curve(job)] == [1024 * step for step in range(1, STEPS + 1)]
    ends = select(func.count()).select_from(Event).filter_by(job_id=job, kind="succeeded")
    assert world.rows(ends) == [(1,)]
