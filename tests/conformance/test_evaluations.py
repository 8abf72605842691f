"""Evaluations when a process dies at a commit, an answer is lost, or two say the same at once: each is there once."""

from dataclasses import replace
from threading import Barrier, Thread

import pytest
from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.database.engine import connect
from orchestrator.errors import StorageError
from orchestrator.queue import Lease
from tests.conformance.doomed import VERBS, dies
from tests.conformance.fault_port import Fate, at_commits, fails, loses_its_answer
from tests.conformance.promises import broken_promises
from tests.evaluation_shorthand import (
    BOTH,
    FACTS,
    evaluate,
    evaluations,
    families,
    record,
    scores,
    take,
    train,
)
from tests.queue_shorthand import claim, enqueue, events, point, result, run_out, state, sweep

FATES = pytest.mark.parametrize("fate", [fails, loses_its_answer])


def about_to_finish(engine: Engine) -> Lease:
    """Return the lease of a training whose sweep asks for an evaluation."""
    queue.enqueue(engine, replace(sweep(1), evaluation=BOTH))
    lease = claim(engine).lease
    queue.begin(engine, lease, FACTS, 0)
    queue.record(engine, lease, [point(100)])
    return lease


def evaluating(engine: Engine) -> Lease:
    enqueue(engine)
    train(engine)
    evaluate(engine, 1)
    return take(engine).lease


def again(engine: Engine, fate: Fate, verb: str, lease: Lease) -> object:
    """Say it to a database that breaks, and once more when it is back."""
    with at_commits(engine, fate), pytest.raises(StorageError, match="server closed"):
        VERBS[verb](engine, lease)
    return VERBS[verb](engine, lease)


def release(engine: Engine, job_id: int) -> None:
    run_out(engine, job_id)
    while queue.release_expired(engine, grace_seconds=15.0, backoff_seconds=0.0) != [job_id]:
        pass  # until the server has noticed that its client is gone


def test_killed_between_a_result_and_its_evaluation(engine: Engine) -> None:
    lease = about_to_finish(engine)
    dies(engine, "finish", "kills before", lease)
    assert (state(engine, 1), evaluations(engine)) == ("running", [])
    release(engine, 1)
    queue.finish(engine, claim(engine).lease, result())
    assert (state(engine, 1), len(evaluations(engine))) == ("succeeded", 1)
    assert broken_promises(engine) == []


def test_killed_after_a_result_and_its_evaluation(engine: Engine) -> None:
    dies(engine, "finish", "kills after", about_to_finish(engine))
    assert (state(engine, 1), evaluations(engine)) == ("succeeded", [2])
    assert take(engine).lease.job_id == 2


@FATES
def test_a_result_whose_answer_is_lost_has_one_evaluation(engine: Engine, fate: Fate) -> None:
    again(engine, fate, "finish", about_to_finish(engine))
    (job_id,) = evaluations(engine)
    assert events(engine, job_id) == ["enqueued"]
    assert broken_promises(engine) == []


@pytest.mark.parametrize("fate", ["kills before", "kills after"])
def test_killed_at_the_scores_of_a_family(engine: Engine, fate: str) -> None:
    lease = evaluating(engine)
    dies(engine, "measure", fate, lease)
    release(engine, 2)
    later = take(engine)
    assert later.measured == (() if fate == "kills before" else ("reconstruction",))
    assert len(scores(engine)) == (0 if fate == "kills before" else 2), "all of a family, or nothing"
    for family in BOTH.metrics:
        record(engine, later.lease, family)
    dies(engine, "finish evaluation", fate, later.lease)
    if fate == "kills before":
        release(engine, 2)
        last = take(engine)
        assert set(last.measured) == set(BOTH.metrics), "there is nothing to be measured again"
        queue.finish_evaluation(engine, last.lease, 1.0)
    assert (state(engine, 2), families(engine, 2)) == ("succeeded", dict.fromkeys(BOTH.metrics, "measured"))
    assert broken_promises(engine) == []


@FATES
def test_what_is_said_twice_of_an_evaluation_counts_once(engine: Engine, fate: Fate) -> None:
    lease = evaluating(engine)
    again(engine, fate, "measure", lease)
    assert len(scores(engine)) == 2
    again(engine, fate, "family fails", lease)
    assert again(engine, fate, "finish evaluation", lease) == "failed"
    assert events(engine, 2).count("failed") == 1
    again(engine, fate, "evaluate", lease)
    assert len(evaluations(engine)) == 2, "one that failed has given its place up"


def test_a_plan_that_comes_as_a_job_finishes_reaches_its_sae_once(engine: Engine) -> None:
    """Whichever commits first: the enqueue finds the SAE, or its job finds the plan."""
    enqueue(engine, 12, name="s")
    leases = [claim(engine).lease for _ in range(12)]
    for lease in leases:
        queue.begin(engine, lease, FACTS, 0)
        queue.record(engine, lease, [point(100)])
    url = engine.url.render_as_string(hide_password=False)
    together = Barrier(3)

    def finish(some: list[Lease]) -> None:
        mine = connect(url)
        together.wait()
        for lease in some:
            queue.finish(mine, lease, result())
        mine.dispose()

    def plan() -> None:
        mine = connect(url)
        together.wait()
        queue.enqueue(mine, replace(sweep(12), evaluation=BOTH))
        mine.dispose()

    threads = [Thread(target=finish, args=[leases[:6]]), Thread(target=finish, args=[leases[6:]]), Thread(target=plan)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(evaluations(engine)) == 12
    assert broken_promises(engine) == []


def test_two_that_ask_for_the_same_at_once_have_one_job(engine: Engine) -> None:
    enqueue(engine, 4)
    for _ in range(4):
        train(engine)
    url = engine.url.render_as_string(hide_password=False)
    together, found = Barrier(4), list[list[int]]()

    def ask(turned: bool) -> None:
        mine = connect(url)
        together.wait()
        found.append(sorted(evaluate(mine, *([4, 3, 2, 1] if turned else [1, 2, 3, 4]))))
        mine.dispose()

    threads = [Thread(target=ask, args=[turned]) for turned in (True, False, True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [evaluations(engine)] * 4
    assert len(found[0]) == 4
