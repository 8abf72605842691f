"""Conformance: what a worker writes while it holds a lease, and the fence around every write."""

import math
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select, text

from orchestrator import queue, results
from orchestrator.config.validation import parse
from orchestrator.database.engine import reading, transaction
from orchestrator.queue import Lease, LeaseLost
from orchestrator.sweep.sweep import Sweep
from tests.queue_shorthand import attempt, claim, enqueue, fail, job, leases, lose, point, ref, result, state

Write = Callable[[Engine, Lease], object]

WRITES: dict[str, Write] = {
    "heartbeat": lambda engine, lease: queue.heartbeat(engine, lease, lease_seconds=60.0, tokens_seen=9),
    "begin": lambda engine, lease: queue.begin(engine, lease, {}, 0),
    "record": lambda engine, lease: queue.record(engine, lease, [point(10)]),
    "checkpointed": lambda engine, lease: queue.checkpointed(engine, lease, ref(10)),
    "finish": lambda engine, lease: queue.finish(engine, lease, result()),
    "fail": lambda engine, lease: fail(engine, lease),
    "release": lambda engine, lease: queue.release(engine, lease),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("wrong", ["token", "attempt", "job"])
def test_no_write_without_the_whole_lease(engine: Engine, write: str, wrong: str) -> None:
    enqueue(engine, 2)
    lease = claim(engine).lease
    claim(engine)
    bad = {"token": Lease(1, 1, "x"), "attempt": Lease(1, 2, lease.token), "job": Lease(2, 1, lease.token)}[wrong]
    before = _snapshot(engine)
    with pytest.raises(LeaseLost):
        WRITES[write](engine, bad)
    assert _snapshot(engine) == before


@pytest.mark.parametrize("write", WRITES)
def test_a_zombie_writes_nothing_and_harms_nobody(engine: Engine, write: str) -> None:
    enqueue(engine)
    old = claim(engine).lease
    lose(engine, 1)
    new = claim(engine).lease
    before = _snapshot(engine)
    with pytest.raises(LeaseLost) as told:
        WRITES[write](engine, old)
    assert told.value.exit_code == 4
    assert _snapshot(engine) == before
    queue.finish(engine, new, result())
    assert state(engine, 1) == "succeeded"


def _snapshot(engine: Engine) -> object:
    jobs = [(row.id, row.state, row.attempt, row.failures, row.tokens_seen) for row in results.jobs(engine)]
    parts = [(results.curve(engine, i), results.events(engine, i), results.checkpoints(engine, i)) for i in (1, 2)]
    return jobs, parts, [results.attempts(engine, i) for i in (1, 2)], leases(engine)


def test_a_heartbeat_renews_and_answers(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine, seconds=5.0).lease
    assert queue.heartbeat(engine, lease, lease_seconds=100.0, tokens_seen=7, tokens_per_second=3.5) == "run"
    (worker,) = results.workers(engine)
    assert worker.lease_left > 90
    assert (worker.tokens_seen, worker.tokens_per_second) == (7, 3.5)
    queue.heartbeat(engine, lease, lease_seconds=100.0, tokens_per_second=math.nan)
    assert results.workers(engine)[0].tokens_seen == 7
    queue.pause(engine, [1])
    assert queue.heartbeat(engine, lease, lease_seconds=100.0) == "pause"
    queue.cancel(engine, [1])
    assert queue.heartbeat(engine, lease, lease_seconds=100.0) == "cancel"


def test_a_late_heartbeat_keeps_a_lease_that_nobody_took(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine, seconds=-100.0).lease
    queue.heartbeat(engine, lease, lease_seconds=60.0)
    assert queue.release_expired(engine, grace_seconds=1.0) == []


def test_progress_is_known_by_its_age(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    queue.heartbeat(engine, lease, lease_seconds=60.0, tokens_seen=5)
    with reading(engine) as session:
        from orchestrator.database.models import LeaseRow

        at = session.scalar(select(LeaseRow.progress_at))
        queue.heartbeat(engine, lease, lease_seconds=60.0, tokens_seen=5)
        session.rollback()
        assert session.scalar(select(LeaseRow.progress_at)) == at


def test_facts_and_a_fresh_start(engine: Engine) -> None:
    enqueue(engine)
    first = claim(engine).lease
    queue.begin(engine, first, {"lr": 1e-3}, 0)
    queue.record(engine, first, [point(10), point(20), point(30)])
    for tokens in (10, 20, 30):
        queue.checkpointed(engine, first, ref(tokens))
    queue.release(engine, first)
    second = claim(engine).lease
    queue.begin(engine, second, {"n_latents": 128, "d_model": 16, "odd": math.inf}, 20)
    assert [p.tokens_seen for p in results.curve(engine, 1)] == [10, 20]
    assert [c.tokens_seen for c in results.checkpoints(engine, 1)] == [20, 10]
    assert (job(engine, 1).n_latents, job(engine, 1).d_model) == (128, 16)
    passed_over = [event for event in results.events(engine, 1) if event.kind == "checkpoints_passed_over"]
    assert [(event.attempt, event.data) for event in passed_over] == [(2, {"tokens_seen": [30]})]
    facts = attempt(engine, 1, 2)
    assert facts.tokens_start == 20
    assert facts.facts == {"n_latents": 128, "d_model": 16, "odd": None}
    assert results.jobs(engine)[0].tokens_seen == 20


@pytest.mark.parametrize("asked", ["auto", 0.25])
def test_the_rate_asked_for_stays_and_what_auto_came_to_is_the_attempts(engine: Engine, asked: str | float) -> None:
    config = parse({"sae": {"n_latents": 64}, "optimizer": {"lr": asked}})
    queue.enqueue(engine, Sweep("rates", (config,)))
    told = 0.1 if asked == "auto" else 0.25

    def seen() -> tuple[float | None, ...]:
        return job(engine, 1).lr, results.jobs(engine)[0].lr, results.measured(engine, ["rates"])[0].lr

    before = None if asked == "auto" else 0.25
    assert seen() == (before, before, before)
    queue.begin(engine, claim(engine).lease, {"lr": told}, 0)
    assert seen() == (before, told, told)
    lose(engine, 1)
    claim(engine)
    assert seen() == (before, told, told), "of the newest attempt that has told"


def test_an_attempt_needs_no_lease_column_that_is_to_go(engine: Engine) -> None:
    """A later release drops leases.fvu while workers of this version are at work."""
    enqueue(engine)
    with transaction(engine) as session:
        session.execute(text("ALTER TABLE leases DROP COLUMN fvu"))
    lease = claim(engine).lease
    queue.begin(engine, lease, {"lr": 0.1}, 0)
    queue.heartbeat(engine, lease, lease_seconds=60.0, tokens_seen=5, tokens_per_second=1.0)
    queue.record(engine, lease, [point(10), point(20)])
    queue.checkpointed(engine, lease, ref(20))
    assert len(results.workers(engine)) == 1
    queue.finish(engine, lease, result())
    assert results.jobs(engine)[0].state == "succeeded"


def test_a_point_written_twice_is_one_point(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    queue.record(engine, lease, [point(10, 0.5), point(20, 0.4)])
    queue.record(engine, lease, [point(20, 0.3)])
    queue.record(engine, lease, [])
    assert [(p.tokens_seen, p.fvu) for p in results.curve(engine, 1)] == [(10, 0.5), (20, 0.3)]


def test_what_is_not_finite_comes_back_as_nan(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    queue.record(engine, lease, [point(10, math.inf, loss=math.nan, l0=3.0)])
    (got,) = results.curve(engine, 1)
    assert math.isnan(got.fvu)
    assert math.isnan(got.loss)
    assert got.l0 == 3.0
    assert results.jobs(engine)[0].fvu is None


def test_every_digit_of_a_float_is_kept(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    exact = point(10, 0.1 + 0.2, loss=1 / 3, flops_dense=1.2345678901234567e19, l0=5e-324)
    queue.record(engine, lease, [exact])
    assert results.curve(engine, 1) == [exact]
