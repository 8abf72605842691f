"""Which jobs may run now: what a claim takes is what people are told, in every state that keeps a job waiting."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from orchestrator import queue, results
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Job, SweepRow
from orchestrator.queue import workers
from orchestrator.queue.eligibility import Obstacle, may_run_now, obstacle
from tests.queue_shorthand import WORKER, claim, enqueue, job, nothing_to_claim


def ask_of_queued(engine: Engine) -> None:
    """Leave a request on queued jobs, as no verb does: a claim must not take them all the same."""
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.sweep_id == 1, Job.state == "queued").values(desired="cancel"))


def put_off(engine: Engine) -> None:
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.sweep_id == 1, Job.state == "queued").values(not_before=db_now() + 600))


def let_arrive(engine: Engine) -> None:
    """Leave what a submission leaves that was cut off behind its first transaction."""
    with transaction(engine) as session:
        session.execute(update(SweepRow).where(SweepRow.id == 1).values(arriving_after=0))


def let_run(engine: Engine) -> None:
    pass


WAYS: dict[Obstacle | None, Callable[[Engine], object]] = {
    None: let_run,
    "asked": ask_of_queued,
    "queue paused": queue.pause_queue,
    "sweep paused": lambda engine: queue.pause_sweep(engine, 1),
    "arriving": let_arrive,
    "backoff": put_off,
    "sweep cap": claim,
}
REASONS = {
    None: "Priority", "asked": "Cancelling", "queue paused": "QueuePaused", "sweep paused": "SweepPaused",
    "arriving": "Arriving",
    "backoff": "Backoff(10m)", "sweep cap": "SweepCap(1/1)",
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_claim_and_people_agree(engine: Engine, way: Obstacle | None) -> None:
    """Sweep 1 has a cap of one job; the job of sweep 2 is behind its jobs."""
    enqueue(engine, 3, name="first", max_parallel=1)
    (last,) = enqueue(engine, 1, name="second")
    WAYS[way](engine)
    with reading(engine) as session:
        columns = select(may_run_now().label("may"), obstacle().label("obstacle")).where(Job.id == 3)
        third = session.execute(columns).one()
    assert (bool(third.may), third.obstacle) == (way is None, way)
    position = results.position_in_queue(engine, last)
    assert (position.before, position.first) == ((3, 1) if way is None else (0, None))
    assert (results.jobs(engine, ids=[3])[0].reason or "").replace("NoWorker", "Priority") == REASONS[way]
    if way == "queue paused":
        assert nothing_to_claim(engine)
    else:
        assert claim(engine).lease.job_id == (1 if way is None else last)


def test_a_job_with_a_request_is_not_waited_for(engine: Engine) -> None:
    """`orch worker --until-empty` would wait for ever: nothing but a person makes such a job run."""
    enqueue(engine, 2)
    assert not queue.is_done(engine)
    ask_of_queued(engine)
    assert queue.is_done(engine)


def test_a_capped_sweep_and_a_backoff_are_waited_for(engine: Engine) -> None:
    enqueue(engine, 2)
    put_off(engine)
    assert not queue.is_done(engine)


def test_what_has_failed_is_no_companion(engine: Engine) -> None:
    enqueue(engine, 3)
    queue.fail(engine, claim(engine).lease, error="x", exit_code=70, outcome="internal", retry=True)
    position = results.position_in_queue(engine, 2)
    assert (position.is_alone, position.companions_queued) == (False, 1)
    assert results.position_in_queue(engine, 1).is_alone


def test_a_clock_that_is_set_back_keeps_no_job_waiting(engine: Engine) -> None:
    """What waits for nothing waits for no time; a time that no backoff can mean is none."""
    for_nothing, failed = enqueue(engine, 2)
    queue.fail(engine, claim(engine).lease, error="x", exit_code=1, outcome="failed", retry=True)
    queue.release(engine, claim(engine).lease)
    hour = 3600.0
    with transaction(engine) as session:  # as if the clock, which all columns were written by, had been an hour ahead
        session.execute(update(Job).where(Job.not_before > 0).values(not_before=Job.not_before + hour + 1))
    assert job(engine, failed).not_before == 0.0, "released, so that it may go on at once"
    assert {claim(engine).lease.job_id, claim(engine).lease.job_id} == {for_nothing, failed}


def test_a_worker_that_sees_the_clock_set_back_moves_what_waits(engine: Engine) -> None:
    enqueue(engine, 1)
    with transaction(engine) as session:
        session.execute(update(Job).values(not_before=db_now() + 1800 + 20))
    how: dict[str, Any] = {"token": "t", "version": "1", "every_seconds": 10.0}
    workers.report(engine, WORKER, **how)
    workers.report(engine, WORKER, **how, elapsed=1800.0)  # the database's clock says that no time has passed
    with reading(engine) as session:
        left = session.scalar(select(Job.not_before - db_now()))
    assert left is not None
    assert 0 < left < 30
