"""Conformance: how an attempt ends: with a result, a failure, or the job handed back."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import Engine, func, select

from orchestrator import queue, results
from orchestrator.cli.display.columns import limit_cell
from orchestrator.curves import convergence, limit
from orchestrator.database.engine import reading
from orchestrator.database.models import ResultRow
from orchestrator.queue import Lease, LeaseLost
from tests.queue_shorthand import (
    WORKER,
    attempt,
    claim,
    enqueue,
    events,
    fail,
    job,
    leases,
    nothing_to_claim,
    point,
    result,
    state,
)


def _curve(engine: Engine, lease: Lease) -> None:
    queue.record(
        engine, lease, [point(round(2 ** (at / 4)), 0.1 + 2.0 ** (-at / 4), dead_share=0.25) for at in range(20, 60)]
    )


def test_a_result_comes_with_its_counts_and_state(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    _curve(engine, lease)
    queue.finish(engine, lease, result(tokens_seen=2**15))
    row = results.jobs(engine)[0]
    assert (row.state, row.outcome, row.tokens_seen, row.dead_share) == ("succeeded", "converged", 2**15, 0.25)
    assert row.finished_at is not None
    points = [(p.tokens_seen, p.fvu) for p in results.curve(engine, 1)]
    tail = limit.tail_fit(points)
    assert tail is not None
    assert (row.l_inf, row.l_inf_se) == (tail.l_inf, tail.l_inf_se)
    assert limit_cell(row) == f"{tail.l_inf:.4f} ± {tail.l_inf_se:.4f}"
    assert limit_cell(replace(row, l_inf_se=None)) == f"{tail.l_inf:.4f}"
    assert limit_cell(replace(row, l_inf=None, l_inf_se=None)) == "–"
    for got in results.convergence(engine, 1):
        asked = limit.tokens_to_convergence(points, epsilon=got.epsilon, tail=tail)
        assert (got.tokens, got.lower_bound) == (asked.tokens, asked.lower_bound)
    assert [c.epsilon for c in results.convergence(engine, 1)] == sorted(convergence.EPSILONS)
    assert leases(engine) == set()
    assert (attempt(engine, 1, 1).outcome, attempt(engine, 1, 1).exit_code) == ("converged", 0)
    assert events(engine, 1) == ["enqueued", "claimed", "succeeded"]


def test_a_finish_whose_answer_was_lost_succeeds_again(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    _curve(engine, lease)
    queue.finish(engine, lease, result())
    queue.finish(engine, lease, result())
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(ResultRow)) == 1
    assert events(engine, 1).count("succeeded") == 1


def test_a_diverged_curve_tends_to_nothing(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    losses = [0.9, 0.7, 0.5, 0.4, 0.35, 0.32, 0.31, 0.3, 0.3, 1.4]
    queue.record(engine, lease, [point(1000 * 2**i, loss) for i, loss in enumerate(losses)])
    queue.finish(engine, lease, result(outcome="diverged", artifact_uri=None))
    (row,) = results.jobs(engine)
    assert row.l_inf is None
    assert all(count.tokens is None and count.lower_bound for count in results.convergence(engine, row.id))


def test_diverged_is_a_result(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    queue.record(engine, lease, [point(10, 0.5), point(20, float("nan"))])
    queue.finish(engine, lease, result(outcome="diverged", artifact_uri=None))
    row = results.jobs(engine)[0]
    assert (row.state, row.outcome, row.fvu, row.tokens_to_convergence) == ("succeeded", "diverged", None, None)


def test_a_result_without_a_curve(engine: Engine) -> None:
    enqueue(engine)
    queue.finish(engine, claim(engine).lease, result(outcome="diverged"))
    assert results.jobs(engine)[0].outcome == "diverged"


def test_a_finish_that_breaks_leaves_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    _curve(engine, lease)

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.queue.outcomes.log_event", broken)
        with pytest.raises(KeyboardInterrupt):
            queue.finish(engine, lease, result())
    assert state(engine, 1) == "running"
    assert results.convergence(engine, 1) == []
    assert leases(engine) == {1}
    queue.finish(engine, lease, result())
    assert state(engine, 1) == "succeeded"


def test_a_finish_beats_a_wish_that_came_too_late(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    queue.cancel(engine, [1])
    queue.finish(engine, lease, result())
    assert (state(engine, 1), job(engine, 1).desired) == ("succeeded", "run")
    assert events(engine, 1)[-1] == "cancel_too_late"


def test_a_failure_is_tried_again_until_the_budget_is_spent(engine: Engine) -> None:
    enqueue(engine, max_failures=2)
    assert fail(engine, claim(engine).lease) == "queued"
    assert (job(engine, 1).failures, job(engine, 1).reason) == (1, "Boom (1 of 2 failures)")
    assert fail(engine, claim(engine).lease) == "failed"
    row = attempt(engine, 1, 2)
    assert (row.error, row.outcome, row.exit_code) == ("Boom\ntrace", "internal", 70)
    assert results.jobs(engine)[0].reason == "Boom (2 of 2 failures)"
    assert nothing_to_claim(engine)


def test_a_dying_trainer_may_say_anything(engine: Engine) -> None:
    enqueue(engine)
    fail(engine, claim(engine).lease, error="a\0b \udcff \N{PILE OF POO}")
    assert attempt(engine, 1, 1).error == "a?b ? \N{PILE OF POO}"


def test_some_failures_are_final(engine: Engine) -> None:
    enqueue(engine)
    assert fail(engine, claim(engine).lease, retry=False, reason="bad config: k") == "failed"
    assert job(engine, 1).reason == "bad config: k"


def test_a_failed_job_waits_before_it_is_tried_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    enqueue(engine, max_failures=20)
    for expected, left in ((30, "(30|2[0-9])s"), (60, "(1m|5[0-9]s)")):
        lease = claim(engine).lease
        fail(engine, lease, backoff_seconds=30.0)
        row = job(engine, 1)
        now = attempt(engine, 1, lease.attempt).ended_at
        assert now is not None
        assert row.not_before - now == pytest.approx(expected, abs=1)
        assert nothing_to_claim(engine)
        reason = results.jobs(engine)[0].reason
        assert re.fullmatch(rf"Backoff\({left}\): {re.escape(row.reason or '')}", reason or ""), reason
        queue.pause(engine, [1])
        queue.resume(engine, [1])


def test_backoff_is_bounded() -> None:
    from orchestrator.queue.fencing import backoff

    assert all(0 <= backoff(earlier, 30.0) <= min(3600, 30 * 2**earlier) for earlier in (0, 1, 3, 10, 5000))


@pytest.mark.parametrize(("wish", "end"), [(queue.cancel, "cancelled"), (queue.pause, "paused")])
def test_a_wish_is_honoured_by_every_ending(engine: Engine, wish: Callable[..., object], end: str) -> None:
    enqueue(engine, 2)
    for finish, job_id in ((fail, 1), (queue.release, 2)):
        lease = claim(engine).lease
        wish(engine, [job_id])
        assert finish(engine, lease) == end
        assert (state(engine, job_id), job(engine, job_id).desired) == (end, "run")
    assert job(engine, 2).preemptions == 0
    assert nothing_to_claim(engine)


def test_an_ending_whose_answer_was_lost(engine: Engine) -> None:
    enqueue(engine, 2)
    one, two = claim(engine).lease, claim(engine).lease
    assert fail(engine, one) == fail(engine, one) == "queued"
    assert queue.release(engine, two) == queue.release(engine, two) == "queued"
    assert (job(engine, 1).failures, job(engine, 2).preemptions) == (1, 1)
    with pytest.raises(LeaseLost):
        queue.release(engine, one)


def test_a_preempted_job_is_queued_at_once_and_costs_no_failure(engine: Engine) -> None:
    enqueue(engine)
    assert queue.release(engine, claim(engine).lease) == "queued"
    assert (job(engine, 1).preemptions, job(engine, 1).failures) == (1, 0)
    assert claim(engine).lease.attempt == 2
    assert attempt(engine, 1, 1).outcome == "preempted"


def test_preemptions_have_their_own_ceiling(engine: Engine) -> None:
    enqueue(engine)
    ends = [queue.release(engine, claim(engine).lease) for _ in range(50)]
    assert ends == ["queued"] * 49 + ["failed"]
    assert job(engine, 1).reason == "preempted 50 times"
    assert queue.claim(engine, WORKER, token="t", lease_seconds=1.0) is None
