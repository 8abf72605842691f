"""Scenarios in which two connections meet at one place, in one order, every time; the real queue passes them all."""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event, select, text

from orchestrator import queue
from orchestrator.database.engine import db_now, reading
from orchestrator.database.models import LeaseRow
from orchestrator.errors import StateError
from tests.conformance.fault_port import PATIENCE_SECONDS, another, at_once, frozen_at_commit
from tests.conformance.promises import broken_promises
from tests.queue_shorthand import (
    WORKER,
    claim,
    enqueue,
    events,
    job,
    leases,
    nothing_to_claim,
    point,
    ref,
    result,
    run_out,
    state,
)

WRITERS = 16


def a_worker_wakes_while_it_is_judged(engine: Engine) -> None:
    """Between the look at its lease and the verdict it renews: it must be left alone."""
    enqueue(engine)
    lease = claim(engine).lease
    run_out(engine, 1)
    with another(engine) as other:

        def wake() -> None:
            queue.heartbeat(other, lease, lease_seconds=60.0)

        with _between_look_and_verdict(engine, wake):
            assert queue.release_expired(engine, grace_seconds=1.0) == []
    assert (state(engine, 1), leases(engine)) == ("running", {1})
    assert broken_promises(engine) == []


def a_claim_passes_over_a_frozen_claim(engine: Engine) -> None:
    """A worker that stands still in the middle of a claim holds nobody up."""
    enqueue(engine, 2)
    with frozen_at_commit(engine, claim) as go_on:
        assert claim(engine).lease.job_id == 2
        assert nothing_to_claim(engine)
        assert go_on().lease.job_id == 1
    assert broken_promises(engine) == []


def a_reaper_passes_over_a_frozen_worker(engine: Engine) -> None:
    """A worker that stands still in the middle of a heartbeat delays no verdict but its own."""
    enqueue(engine, 2)
    lease = claim(engine).lease
    claim(engine)
    for job_id in (1, 2):
        run_out(engine, job_id)
    with frozen_at_commit(engine, lambda other: queue.record(other, lease, [point(10)])) as go_on:
        assert queue.release_expired(engine, grace_seconds=1.0) == [2]
        go_on()
    assert queue.release_expired(engine, grace_seconds=1.0) == [1]
    assert broken_promises(engine) == []


def a_lease_counts_from_when_it_is_given(engine: Engine) -> None:
    """A claim that waited for another's lock has its whole lease before it all the same."""
    enqueue(engine, 2, max_parallel=2)
    with frozen_at_commit(engine, claim) as go_on, _elsewhere(engine, claim) as second:
        _wait_until_it_waits(engine, second)
        with reading(engine) as session:
            before = session.execute(select(db_now())).scalar_one()
        go_on()
        lease = second.result(PATIENCE_SECONDS).lease
    with reading(engine) as session:
        until = session.execute(select(LeaseRow.expires_at).where(LeaseRow.job_id == lease.job_id)).scalar_one()
    assert until - 60.0 >= before
    assert broken_promises(engine) == []


def the_last_place_is_taken_once(engine: Engine) -> None:
    """Two claims want the last place of a sweep: the second waits for the first, and finds it taken."""
    enqueue(engine, 2, max_parallel=1)

    def ask(other: Engine) -> queue.Claim | None:
        return queue.claim(other, WORKER, token="second", lease_seconds=60.0)

    with frozen_at_commit(engine, claim) as go_on, _elsewhere(engine, ask) as second:
        _wait_until_it_waits(engine, second)
        assert go_on().lease.job_id == 1
        assert second.result(PATIENCE_SECONDS) is None
    assert broken_promises(engine) == []


def many_write_at_once(engine: Engine) -> None:
    """Writers with connections of their own put in, claim, write and finish; nobody is refused."""

    def writer(number: int) -> Callable[[], list[int]]:
        def work() -> list[int]:
            with another(engine) as mine:
                return [_one_life(mine, f"s{number}", seed) for seed in range(4)]

        return work

    done = at_once(*(writer(number) for number in range(WRITERS)))
    assert sorted(job_id for ids in done for job_id in ids) == list(range(1, 4 * WRITERS + 1))
    assert {state(engine, job_id) for ids in done for job_id in ids} == {"succeeded"}
    assert broken_promises(engine) == []


def _one_life(engine: Engine, name: str, seed: int) -> int:
    enqueue(engine, name=name, start=seed)
    lease = claim(engine).lease
    queue.begin(engine, lease, {"d_model": 64}, 0)
    for tokens in (10, 20):
        queue.heartbeat(engine, lease, lease_seconds=60.0, tokens_seen=tokens)
        queue.record(engine, lease, [point(tokens)])
    queue.checkpointed(engine, lease, ref(20))
    queue.finish(engine, lease, result())
    return lease.job_id


def cancelled_while_it_finishes(engine: Engine) -> None:
    """A result and a cancel meet at the same instant, many times: the job succeeds, whoever comes first."""
    said = set()
    for seed in range(30):
        (job_id,) = enqueue(engine, start=seed)
        lease = claim(engine).lease
        answers = at_once(lambda: queue.finish(engine, lease, result()), lambda: _cancel(engine, job_id))  # noqa: B023
        said.add(answers[1])
        assert (state(engine, job_id), job(engine, job_id).desired) == ("succeeded", "run")
        assert "cancelled" not in events(engine, job_id)
        assert broken_promises(engine) == []
    assert said <= {"asked to stop", "refused"}


def cancelled_while_it_is_claimed(engine: Engine) -> None:
    """A claim and a cancel meet: either it never starts, or the first heartbeat says so; it ends cancelled."""
    for seed in range(30):
        (job_id,) = enqueue(engine, start=seed)

        def ask(token: str = f"t{seed}") -> object:
            return queue.claim(engine, WORKER, token=token, lease_seconds=60.0)

        got, said = at_once(ask, lambda: _cancel(engine, job_id))  # noqa: B023
        if isinstance(got, queue.Claim):
            assert said == "asked to stop"
            assert queue.heartbeat(engine, got.lease, lease_seconds=60.0) == "cancel"
            assert queue.release(engine, got.lease) == "cancelled"
        assert state(engine, job_id) == "cancelled"
        assert broken_promises(engine) == []


def _cancel(engine: Engine, job_id: int) -> str:
    try:
        (change,) = queue.cancel(engine, [job_id])
    except StateError:
        return "refused"
    return change.effect


@contextmanager
def _between_look_and_verdict(engine: Engine, act: Callable[[], Any]) -> Iterator[None]:
    """Act before the engine's second transaction begins."""
    transactions = itertools.count(1)

    def step_in(*_: object) -> None:
        if next(transactions) == 2:
            act()

    event.listen(engine, "checkout", step_in)
    try:
        yield
    finally:
        event.remove(engine, "checkout", step_in)
    assert next(transactions) > 2


@contextmanager
def _elsewhere(engine: Engine, verb: Callable[[Engine], Any]) -> Iterator["Future[Any]"]:
    """Say a verb in another thread, over another connection."""
    with another(engine) as other, ThreadPoolExecutor(1) as pool:
        yield pool.submit(verb, other)


def _wait_until_it_waits(engine: Engine, call: "Future[Any]") -> None:
    """Wait until a call stands at a lock of PostgreSQL, or has ended without waiting for any."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not call.done():
        assert time.monotonic() < deadline
        with engine.connect() as connection:
            if connection.scalar(query):
                return
