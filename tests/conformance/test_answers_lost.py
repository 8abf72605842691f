"""A commit fails or its answer is lost, and the caller says the same again: the outcome is that of saying it once."""

import itertools
import random
import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import Engine, func, select

from orchestrator import queue
from orchestrator.database.engine import connect, reading
from orchestrator.database.models import Event, ResultRow
from orchestrator.errors import StorageError
from orchestrator.queue import Lease
from orchestrator.settings import Settings
from tests.conformance.doomed import VERBS, Verb
from tests.conformance.fault_port import Fate, at_commits, at_once, fails, goes_well, loses_its_answer
from tests.conformance.promises import broken_promises
from tests.queue_shorthand import WORKER, attempt, claim, enqueue, job, leases, point, run_out, state
from worker.supervisor.lease import HeldLease, Status

FATES = pytest.mark.parametrize("fate", [fails, loses_its_answer])


def again(engine: Engine, fate: Fate, verb: Verb, lease: Lease) -> object:
    """Say it to a database that breaks, and once more when it is back."""
    with at_commits(engine, fate), pytest.raises(StorageError, match="server closed"):
        verb(engine, lease)
    return verb(engine, lease)


@FATES
def test_f08_a_claim_whose_answer_is_lost(engine: Engine, fate: Fate) -> None:
    enqueue(engine, 2)
    got = again(engine, fate, VERBS["claim"], Lease(0, 0, "t"))
    assert isinstance(got, queue.Claim)
    assert got.lease == Lease(1, 1, "t")
    assert leases(engine) == {1}
    assert broken_promises(engine) == []


def test_f08_a_claim_that_is_asked_for_after_its_lease_ran_out(engine: Engine) -> None:
    """The same token, a new attempt: the old one stays lost."""
    enqueue(engine)
    with at_commits(engine, loses_its_answer), pytest.raises(StorageError):
        claim(engine, token="t")
    run_out(engine, 1)
    queue.release_expired(engine, grace_seconds=1.0)
    assert claim(engine, token="t").lease == Lease(1, 2, "t")
    assert attempt(engine, 1, 1).outcome == "lost"
    assert broken_promises(engine) == []


@FATES
def test_f08_a_heartbeat_whose_answer_is_lost(engine: Engine, fate: Fate) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    run_out(engine, 1)
    queue.cancel(engine, [1])
    assert again(engine, fate, VERBS["heartbeat"], lease) == "cancel"
    assert queue.release_expired(engine, grace_seconds=1.0) == []
    assert broken_promises(engine) == []


@FATES
def test_f08_a_finish_whose_answer_is_lost(engine: Engine, fate: Fate) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    queue.record(engine, lease, [point(10), point(20)])
    again(engine, fate, VERBS["finish"], lease)
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(ResultRow)) == 1
        assert session.scalar(select(func.count()).where(Event.kind == "succeeded")) == 1
    assert broken_promises(engine) == []


def test_f08_a_worker_over_a_line_that_breaks_at_random(settings: Settings, engine: Engine) -> None:
    """Half of all commits fail or lose their answer, by a seed: each job is done in one attempt all the same."""
    ids = enqueue(engine, 4)
    seconds = itertools.count(0.0, 5.0)  # so that it need not wait between its tries
    fates = random.Random(8).choices([goes_well, fails, loses_its_answer], weights=[2, 1, 1], k=4000)
    with at_commits(engine, *fates):
        for _ in ids:
            lease = HeldLease(engine, _claimed(engine), settings, now=lambda: next(seconds))
            for tokens in range(10, 60, 10):
                lease.write(lambda engine, mine, tokens=tokens: queue.record(engine, mine, [point(tokens)]))  # type: ignore[misc]
                lease.heartbeat(Status(tokens))
            lease.write(VERBS["finish"])
            assert lease.settle(patience=lambda: True, pause=lambda _: None)
    assert [(state(engine, i), job(engine, i).attempt) for i in ids] == [("succeeded", 1)] * 4
    assert broken_promises(engine) == []


def _claimed(engine: Engine) -> Lease:
    token = uuid.uuid4().hex
    while True:
        try:
            return claim(engine, token=token).lease
        except StorageError:
            continue


def claim_at_once(engine: Engine, n: int) -> list[queue.Claim]:
    """Let n workers look for work at the same instant; return what they got."""

    def asker(number: int) -> Callable[[], queue.Claim | None]:
        return lambda: queue.claim(engine, WORKER, token=f"{look}-{number}", lease_seconds=60.0)

    look = uuid.uuid4().hex
    return [got for got in at_once(*(asker(number) for number in range(n))) if got is not None]


def test_f09_ten_wake_ups_at_once_are_one_claim(engine: Engine) -> None:
    for round_ in range(1, 6):
        (job_id,) = enqueue(engine, start=round_)
        (got,) = claim_at_once(engine, 10)
        assert (got.lease.job_id, got.lease.attempt) == (job_id, 1)
    assert broken_promises(engine) == []


def test_f09_ten_wake_ups_for_ten_jobs(settings: Settings) -> None:
    engine = connect(settings.database)
    ids = enqueue(engine, 10)
    held = {got.lease.job_id for got in claim_at_once(engine, 10)}
    while got := queue.claim(engine, WORKER, token=uuid.uuid4().hex, lease_seconds=60.0):
        held.add(got.lease.job_id)
    assert sorted(held) == ids
    for lease_of in ids:
        assert attempt(engine, lease_of, 1).outcome is None
    assert broken_promises(engine) == []
    engine.dispose()
