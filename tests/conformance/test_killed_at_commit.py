"""A process is killed just before or just after a commit: all of the transaction counts, or none of it."""

import time
from collections.abc import Callable

from sqlalchemy import Engine, func, select

from orchestrator import queue, results
from orchestrator.database.engine import reading
from orchestrator.database.models import ConvergenceRow, ResultRow, Table
from orchestrator.queue import Lease
from tests.conformance.doomed import dies
from tests.conformance.promises import broken_promises
from tests.queue_shorthand import (
    attempt,
    claim,
    enqueue,
    events,
    job,
    leases,
    nothing_to_claim,
    point,
    result,
    run_out,
    state,
)

UNCLAIMED = Lease(1, 1, "t")


def until(seen: Callable[[], bool]) -> None:
    """Wait for what a server does when it notices that a client is gone."""
    deadline = time.monotonic() + 30
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stored(engine: Engine, table: type[Table]) -> int:
    with reading(engine) as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_f01_killed_before_the_commit_of_a_claim(engine: Engine) -> None:
    enqueue(engine)
    dies(engine, "claim", "kills before", UNCLAIMED)
    assert (state(engine, 1), job(engine, 1).attempt, leases(engine)) == ("queued", 0, set())
    until(lambda: not nothing_to_claim(engine))
    assert (state(engine, 1), job(engine, 1).attempt) == ("running", 1)
    assert broken_promises(engine) == []


def test_f02_killed_after_the_commit_of_a_claim(engine: Engine) -> None:
    """The lease is there from the first moment: nobody need have heard of the worker for it to run out."""
    enqueue(engine)
    dies(engine, "claim", "kills after", UNCLAIMED)
    assert (state(engine, 1), leases(engine)) == ("running", {1})
    assert queue.release_expired(engine, grace_seconds=15.0) == []
    run_out(engine, 1)
    assert queue.release_expired(engine, grace_seconds=15.0) == [1]
    assert attempt(engine, 1, 1).outcome == "lost"
    assert claim(engine).lease.attempt == 2
    assert broken_promises(engine) == []


def test_f07_killed_between_result_and_commit(engine: Engine) -> None:
    enqueue(engine)
    first = claim(engine).lease
    queue.record(engine, first, [point(10), point(20)])
    dies(engine, "finish", "kills before", first)
    assert (stored(engine, ResultRow), stored(engine, ConvergenceRow), state(engine, 1)) == (0, 0, "running")
    run_out(engine, 1)
    until(lambda: queue.release_expired(engine, grace_seconds=15.0) == [1])
    second = claim(engine).lease
    queue.finish(engine, second, result())
    assert (stored(engine, ResultRow), state(engine, 1), job(engine, 1).attempt) == (1, "succeeded", 2)
    assert broken_promises(engine) == []


def test_f07_killed_after_the_commit_of_a_result(engine: Engine) -> None:
    enqueue(engine)
    dies(engine, "finish", "kills after", claim(engine).lease)
    assert (stored(engine, ResultRow), state(engine, 1), leases(engine)) == (1, "succeeded", set())
    assert queue.release_expired(engine, grace_seconds=0.0) == []
    assert broken_promises(engine) == []


def test_f22_cancelled_and_killed_before_it_heard_of_it(engine: Engine) -> None:
    enqueue(engine)
    dies(engine, "claim", "kills after", UNCLAIMED)
    queue.cancel(engine, [1])
    run_out(engine, 1)
    assert queue.release_expired(engine, grace_seconds=15.0) == [1]
    assert state(engine, 1) == "cancelled"
    assert "queued" not in events(engine, 1)
    assert nothing_to_claim(engine)
    assert broken_promises(engine) == []


def test_f32_killed_in_the_middle_of_an_enqueue(engine: Engine) -> None:
    dies(engine, "enqueue", "kills before", UNCLAIMED)
    assert (results.sweeps(engine), results.counts(engine)["queued"]) == ([], 0)
    assert enqueue(engine, 50) != []
    assert results.counts(engine)["queued"] == 50
    assert broken_promises(engine) == []
