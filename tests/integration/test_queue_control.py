"""Conformance: what a person asks for, and leases that run out."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, Select, select
from sqlalchemy.orm import Session

from orchestrator import queue, results
from orchestrator.database.engine import transaction
from orchestrator.database.models import Job, LeaseRow
from orchestrator.database.schema import open_database
from orchestrator.errors import NotFound, StateError
from orchestrator.queue import Change
from orchestrator.settings import Settings
from tests.queue_shorthand import (
    attempt,
    claim,
    enqueue,
    events,
    fail,
    job,
    leases,
    lose,
    nothing_to_claim,
    ref,
    result,
    run_out,
    state,
    sweep,
)

STATES = ("queued", "running", "pausing", "cancelling", "paused", "succeeded", "failed", "cancelled")
REFUSED = None
EXPECTED: dict[str, dict[str, tuple[str, str, str] | None]] = {
    "cancel": {
        "queued": ("cancelled", "run", "cancelled"),
        "running": ("running", "cancel", "asked to stop"),
        "pausing": ("running", "cancel", "asked to stop"),
        "cancelling": ("running", "cancel", "asked to stop"),
        "paused": ("cancelled", "run", "cancelled"),
        "cancelled": ("cancelled", "run", "already cancelled"),
    },
    "pause": {
        "queued": ("paused", "run", "paused"),
        "running": ("running", "pause", "asked to pause"),
        "pausing": ("running", "pause", "asked to pause"),
        "paused": ("paused", "run", "already paused"),
    },
    "resume": {
        "queued": ("queued", "run", "already queued"),
        "running": ("running", "run", "already running"),
        "pausing": ("running", "run", "runs on"),
        "paused": ("queued", "run", "queued"),
    },
    "retry": {
        "queued": ("queued", "run", "already queued"),
        "failed": ("queued", "run", "queued"),
        "cancelled": ("queued", "run", "queued"),
    },
}


def _bring(engine: Engine, wanted: str) -> None:
    enqueue(engine)
    if wanted in {"running", "pausing", "cancelling", "succeeded", "failed"}:
        lease = claim(engine).lease
        if wanted == "succeeded":
            queue.finish(engine, lease, result())
        if wanted == "failed":
            fail(engine, lease, retry=False)
    if wanted in {"pausing", "paused"}:
        queue.pause(engine, [1])
    if wanted in {"cancelling", "cancelled"}:
        queue.cancel(engine, [1])


@pytest.mark.parametrize("verb", EXPECTED)
@pytest.mark.parametrize("start", STATES)
def test_every_wish_in_every_state(engine: Engine, verb: str, start: str) -> None:
    _bring(engine, start)
    expected = EXPECTED[verb].get(start, REFUSED)
    before = events(engine, 1)
    wish = getattr(queue, verb)
    if expected is REFUSED:
        with pytest.raises(StateError, match=f"cannot {verb} job 1: it is") as told:
            wish(engine, [1])
        assert told.value.hint == "orch explain 1"
        assert events(engine, 1) == before
        enqueue(engine, 1, start=99)
        (refused, _) = wish(engine, [1, 2]) if verb != "retry" else [*wish(engine, [1, 2])]
        assert refused.state == job(engine, 1).state
        return
    assert wish(engine, [1]) == [Change(1, expected[0], expected[2])]  # type: ignore[arg-type]
    assert (state(engine, 1), job(engine, 1).desired) == expected[:2]
    assert (job(engine, 1).finished_at is not None) == (expected[0] == "cancelled")


def test_an_unknown_job_stops_the_whole_wish(engine: Engine) -> None:
    enqueue(engine, 2)
    with pytest.raises(NotFound, match="no job 7"):
        queue.cancel(engine, [1, 7])
    assert state(engine, 1) == "queued"


def test_a_wish_about_many_jobs(engine: Engine) -> None:
    ids = enqueue(engine, 2100)
    claim(engine)
    changes = queue.cancel(engine, [5, *ids, 5])
    assert [change.job_id for change in changes] == [5, *[i for i in ids if i != 5]]
    assert results.counts(engine)["cancelled"] == 2099
    assert {c.effect for c in changes} == {"cancelled", "asked to stop"}
    assert len(queue.retry(engine, ids)) == 2100
    assert results.counts(engine)["queued"] == 2099
    assert queue.cancel(engine, []) == []


def test_a_retry_has_fresh_budgets_and_keeps_its_checkpoints(engine: Engine) -> None:
    enqueue(engine, max_failures=1)
    lease = claim(engine).lease
    queue.checkpointed(engine, lease, ref(10))
    fail(engine, lease)
    queue.retry(engine, [1])
    row = job(engine, 1)
    assert (row.failures, row.preemptions, row.lost_in_row, row.reason, row.finished_at) == (0, 0, 0, None, None)
    got = claim(engine)
    assert (got.lease.attempt, got.checkpoints) == (2, (ref(10),))


def test_a_job_whose_config_came_again_is_not_retried(engine: Engine) -> None:
    enqueue(engine)
    queue.cancel(engine, [1])
    enqueue(engine)
    with pytest.raises(StateError, match="cannot retry job 1: it has been enqueued again as job 2"):
        queue.retry(engine, [1])
    queue.cancel(engine, [2])
    changes = queue.retry(engine, [1, 2])
    assert [(c.job_id, c.state) for c in changes] == [(1, "cancelled"), (2, "queued")]


def test_a_sweep_that_does_not_exist(engine: Engine) -> None:
    with pytest.raises(NotFound, match="no sweep 5"):
        queue.pause_sweep(engine, 5)


def test_a_lease_that_ran_out_gives_the_job_back(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    queue.heartbeat(engine, lease, lease_seconds=60, tokens_seen=12)
    lose(engine, 1)
    row = attempt(engine, 1, 1)
    assert (row.outcome, row.tokens_end, row.ended_at is not None) == ("lost", 12, True)
    assert (state(engine, 1), job(engine, 1).failures, job(engine, 1).lost_in_row) == ("queued", 0, 1)
    assert claim(engine).lease.attempt == 2


def test_grace_is_added_to_the_lease(engine: Engine) -> None:
    enqueue(engine)
    claim(engine)
    run_out(engine, 1)
    assert queue.release_expired(engine, grace_seconds=100.0) == []
    assert queue.release_expired(engine, grace_seconds=30.0) == [1]


def test_three_losses_without_a_checkpoint_end_it(engine: Engine) -> None:
    enqueue(engine, 2)
    for _ in range(3):
        assert claim(engine).lease.job_id == 1
        lose(engine, 1)
    assert state(engine, 1) == "failed"
    assert "3 attempts in a row lost their worker" in (job(engine, 1).reason or "")
    assert claim(engine).lease.job_id == 2


@pytest.mark.parametrize(("beat", "checkpoint", "end"), [(12, 20, 20), (20, 12, 20)])
def test_an_attempt_ends_where_its_last_checkpoint_is(engine: Engine, beat: int, checkpoint: int, end: int) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    queue.heartbeat(engine, lease, lease_seconds=60, tokens_seen=beat)
    queue.checkpointed(engine, lease, ref(checkpoint))
    lose(engine, 1)
    assert attempt(engine, 1, 1).tokens_end == end


def test_a_new_checkpoint_breaks_the_row_of_losses(engine: Engine) -> None:
    enqueue(engine)
    for tokens in range(5):
        queue.checkpointed(engine, claim(engine).lease, ref(tokens))
        lose(engine, 1)
    assert (state(engine, 1), job(engine, 1).lost_in_row) == ("queued", 1)


def test_the_second_loss_in_a_row_waits(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    enqueue(engine)
    claim(engine)
    run_out(engine, 1)
    queue.release_expired(engine, grace_seconds=1.0)
    claim(engine)
    run_out(engine, 1)
    queue.release_expired(engine, grace_seconds=1.0)
    assert nothing_to_claim(engine)


@pytest.mark.parametrize(("verb", "end"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_wish_outlives_the_worker(engine: Engine, verb: str, end: str) -> None:
    enqueue(engine)
    claim(engine)
    getattr(queue, verb)(engine, [1])
    lose(engine, 1)
    assert (state(engine, 1), job(engine, 1).desired) == (end, "run")
    assert nothing_to_claim(engine)


def test_many_reconcilers_at_once_release_once(engine: Engine) -> None:
    ids = enqueue(engine, 8)
    for job_id in ids:
        claim(engine)
        run_out(engine, job_id)
    with ThreadPoolExecutor(4) as pool:
        released = list(pool.map(lambda _: queue.release_expired(engine, grace_seconds=1.0), range(4)))
    assert sorted(job_id for part in released for job_id in part) == ids
    assert all(events(engine, job_id).count("queued") == 1 for job_id in ids)


def test_a_lease_renewed_after_it_was_seen_is_left_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard is repeated where the lease is taken: between look and take the worker may have come back."""
    from orchestrator.queue import expiry

    enqueue(engine)
    lease = claim(engine).lease
    run_out(engine, 1)

    def renewed_first(of: Engine) -> AbstractContextManager[Session]:
        queue.heartbeat(engine, lease, lease_seconds=60.0)
        return transaction(of)

    monkeypatch.setattr(expiry, "transaction", renewed_first)
    assert queue.release_expired(engine, grace_seconds=1.0) == []
    assert (state(engine, 1), leases(engine)) == ("running", {1})


@contextmanager
def _frozen(engine: Engine, rows: Select[Any]) -> Iterator[None]:
    """Stand still in the middle of a transaction that has locked some rows."""
    ready, done = threading.Event(), threading.Event()

    def freeze() -> None:
        with transaction(engine) as session:
            session.execute(rows.with_for_update()).all()
            ready.set()
            done.wait(10)

    thread = threading.Thread(target=freeze)
    thread.start()
    assert ready.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture
def postgres_engine(postgres_settings: Settings) -> Iterator[Engine]:
    engine = open_database(postgres_settings)
    yield engine
    engine.dispose()


def test_f06_a_reconciler_passes_over_a_frozen_workers_lease(postgres_engine: Engine) -> None:
    enqueue(postgres_engine, 3)
    for job_id in (1, 2):
        claim(postgres_engine)
        run_out(postgres_engine, job_id)
    with _frozen(postgres_engine, select(LeaseRow).where(LeaseRow.job_id == 1)):
        assert queue.release_expired(postgres_engine, grace_seconds=1.0) == [2]
        assert claim(postgres_engine).lease.job_id == 2
    assert queue.release_expired(postgres_engine, grace_seconds=1.0) == [1]
    assert leases(postgres_engine) == {2}


def test_f06_a_claim_passes_over_a_frozen_claim(postgres_engine: Engine) -> None:
    enqueue(postgres_engine, 2)
    with _frozen(postgres_engine, select(Job).where(Job.id == 1)):
        assert claim(postgres_engine).lease.job_id == 2
        assert nothing_to_claim(postgres_engine)
    assert claim(postgres_engine).lease.job_id == 1


def test_the_skipped_count_survives_a_wish(engine: Engine) -> None:
    enqueue(engine, 3)
    queue.pause(engine, [1, 2, 3])
    assert queue.enqueue(engine, sweep(3)).skipped == 3
