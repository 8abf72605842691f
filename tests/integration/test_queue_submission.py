"""Conformance: what comes into the queue, on SQLite and on PostgreSQL."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Engine, func, select, text, update

from orchestrator import queue, results
from orchestrator.config.job import JobConfig
from orchestrator.database.engine import reading, transaction
from orchestrator.database.models import Job, SweepRow
from orchestrator.errors import ConfigError
from orchestrator.sweep.sweep import Limits, Sweep
from tests.queue_shorthand import (
    WORKER,
    attempt,
    claim,
    enqueue,
    events,
    fail,
    job,
    nothing_to_claim,
    ref,
    state,
    sweep,
)


def test_a_sweep_comes_in(engine: Engine) -> None:
    done = queue.enqueue(engine, sweep(3))
    assert done.job_ids == (1, 2, 3)
    assert (done.added, done.skipped) == (3, 0)
    row = job(engine, 2)
    assert (row.state, row.desired, row.attempt, row.replica, row.lr) == ("queued", "run", 0, 0, None)
    assert (row.n_latents, row.k, row.seed, row.max_tokens) == (64, 32, 1, 20_000_000)
    assert results.config(engine, 2) == json.loads(sweep(3).configs[1].canonical_json())
    assert events(engine, 2) == ["enqueued"]


def test_the_same_file_twice_adds_nothing(engine: Engine) -> None:
    queue.enqueue(engine, sweep(3))
    again = queue.enqueue(engine, sweep(3))
    assert again.job_ids == (None, None, None)
    assert (again.added, again.skipped) == (0, 3)


def test_only_what_is_new_is_added_in_its_position(engine: Engine) -> None:
    queue.enqueue(engine, sweep(2, start=1))
    assert queue.enqueue(engine, sweep(4)).job_ids == (3, None, None, 4)


def test_a_config_named_twice_is_one_job(engine: Engine) -> None:
    (config,) = sweep(1).configs
    assert queue.enqueue(engine, Sweep("s", (config, config))).job_ids == (1, None)


def test_the_same_config_in_two_sweeps_is_two_jobs(engine: Engine) -> None:
    assert enqueue(engine, name="a") == [1]
    assert enqueue(engine, name="b") == [2]


def test_duplicates_on_demand_get_a_replica_number(engine: Engine) -> None:
    (config,) = sweep(1).configs
    queue.enqueue(engine, sweep(1))
    done = queue.enqueue(engine, Sweep("s", (config, config)), allow_duplicate=True)
    assert done.job_ids == (2, 3)
    assert [job(engine, i).replica for i in (1, 2, 3)] == [0, 1, 2]
    assert queue.enqueue(engine, sweep(1)).added == 0


def test_a_failed_or_cancelled_config_may_come_again(engine: Engine) -> None:
    enqueue(engine, 3)
    fail(engine, claim(engine).lease, retry=False)
    queue.cancel(engine, [2])
    assert queue.enqueue(engine, sweep(3)).job_ids == (4, 5, None)


def test_limits_and_labels_are_those_of_the_last_file(engine: Engine) -> None:
    enqueue(engine, 1, max_parallel=1)
    queue.enqueue(engine, Sweep("s", sweep(1).configs, {"a": "b"}, Limits(max_parallel=7, max_failures=9), "new"))
    (row,) = results.sweeps(engine)
    assert (row.max_parallel, row.max_failures, row.labels) == (7, 9, {"a": "b"})


def test_the_run_cap_refuses_the_whole_sweep(engine: Engine) -> None:
    enqueue(engine, 2, run_cap=3)
    with pytest.raises(ConfigError, match=r"run_cap = 3") as told:
        queue.enqueue(engine, sweep(4, run_cap=3))
    assert told.value.hint
    assert results.counts(engine)["queued"] == 2
    assert queue.enqueue(engine, sweep(3, run_cap=3)).added == 1


def test_a_refused_new_sweep_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(ConfigError):
        queue.enqueue(engine, sweep(4, run_cap=3))
    assert results.sweeps(engine) == []


def test_an_empty_sweep(engine: Engine) -> None:
    assert queue.enqueue(engine, Sweep("s", ())).job_ids == ()
    assert results.sweeps(engine)[0].jobs == 0


def test_two_enqueues_at_once_add_once(engine: Engine) -> None:
    gate = Barrier(4)

    def go(_: int) -> int:
        gate.wait()
        return queue.enqueue(engine, sweep(20)).added

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(go, range(4))) == [0, 0, 0, 20]
    assert results.counts(engine)["queued"] == 20


def test_a_large_sweep(engine: Engine) -> None:
    done = queue.enqueue(engine, sweep(3000))
    assert done.job_ids == tuple(range(1, 3001))
    with reading(engine) as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 3000


def test_claims_go_by_priority_then_age(engine: Engine) -> None:
    enqueue(engine, 2)
    enqueue(engine, 2, start=10, priority=5)
    enqueue(engine, 1, start=20, priority=-1)
    assert [claim(engine).lease.job_id for _ in range(5)] == [3, 4, 1, 2, 5]
    assert nothing_to_claim(engine)


def test_a_claim_leaves_job_lease_and_attempt(engine: Engine) -> None:
    enqueue(engine)
    got = claim(engine, token="t")
    assert got.lease == queue.Lease(1, 1, "t")
    assert (got.config, got.sweep, got.checkpoints) == (sweep(1).configs[0], "s", ())
    assert (job(engine, 1).state, job(engine, 1).attempt) == ("running", 1)
    row = attempt(engine, 1, 1)
    assert (row.token, row.worker, row.host, row.pid, row.device, row.ended_at) == ("t", "w1", "here", 1, "cpu", None)
    (worker,) = results.workers(engine)
    assert 50 < worker.lease_left <= 60
    assert events(engine, 1) == ["enqueued", "claimed"]


def test_a_claim_whose_answer_was_lost_is_adopted(engine: Engine) -> None:
    enqueue(engine, 2)
    assert claim(engine, token="t") == claim(engine, token="t")
    assert results.counts(engine) == dict.fromkeys(results.counts(engine), 0) | {"queued": 1, "running": 1}


def test_the_next_attempt_starts_from_the_newest_checkpoint(engine: Engine) -> None:
    enqueue(engine)
    first = claim(engine)
    for tokens in (10, 30, 20):
        queue.checkpointed(engine, first.lease, ref(tokens))
    queue.release(engine, first.lease)
    second = claim(engine)
    assert second.lease.attempt == 2
    assert second.checkpoints == (ref(30), ref(20), ref(10))
    assert results.jobs(engine)[0].tokens_seen == 30


def test_a_paused_sweep_gives_no_job(engine: Engine) -> None:
    enqueue(engine, 2, name="a")
    enqueue(engine, 1, name="b")
    queue.pause_sweep(engine, 1)
    assert claim(engine).lease.job_id == 3
    assert nothing_to_claim(engine)
    queue.resume_sweep(engine, 1)
    assert claim(engine).lease.job_id == 1


def test_max_parallel_is_a_ceiling(engine: Engine) -> None:
    enqueue(engine, 4, name="a", max_parallel=2)
    enqueue(engine, 1, name="b")
    assert [claim(engine).lease.job_id for _ in range(3)] == [1, 2, 5]
    assert nothing_to_claim(engine)
    assert queue.waiting(engine, limit=9) == []


def test_max_parallel_holds_when_all_claim_at_once(engine: Engine) -> None:
    enqueue(engine, 12, max_parallel=3)
    gate = Barrier(6)

    def go(number: int) -> bool:
        gate.wait()
        return queue.claim(engine, WORKER, token=f"t{number}", lease_seconds=60.0) is not None

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(go, range(6))) <= 3
    while not nothing_to_claim(engine):
        pass
    assert results.counts(engine)["running"] == 3


def test_no_job_is_claimed_twice(engine: Engine) -> None:
    enqueue(engine, 60)

    def go(worker: int) -> list[int]:
        got: list[int] = []
        while (mine := queue.claim(engine, WORKER, token=f"{worker}-{len(got)}", lease_seconds=60.0)) is not None:
            got.append(mine.lease.job_id)
        return got

    with ThreadPoolExecutor(5) as pool:
        claimed = [job_id for got in pool.map(go, range(5)) for job_id in got]
    assert sorted(claimed) == list(range(1, 61))


def test_a_stored_config_that_is_not_valid_fails_its_job_alone(engine: Engine) -> None:
    enqueue(engine, 2)
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == 1).values(config='{"from": "the future"}'))
    assert claim(engine).lease.job_id == 2
    assert state(engine, 1) == "failed"
    assert attempt(engine, 1, 1).outcome == "config"


def test_a_claim_carries_the_config_that_was_enqueued_and_its_id(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueued = sweep(1).configs[0]
    enqueue(engine, 1)
    monkeypatch.setattr(JobConfig, "model_validate", None)  # it was validated when it came in
    found = claim(engine).config
    assert found == enqueued
    assert found.config_id == job(engine, 1).config_id == enqueued.config_id


def test_the_claim_reads_the_queue_by_its_index(engine: Engine) -> None:
    from orchestrator.queue.claims import _eligible

    enqueue(engine, 200)
    query = str(_eligible().limit(1).compile(engine, compile_kwargs={"literal_binds": True}))
    with transaction(engine) as session:
        if engine.dialect.name == "postgresql":
            session.execute(text("SET LOCAL enable_sort = off"))
        explain = "EXPLAIN" if engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
        plan = "\n".join(str(row) for row in session.execute(text(f"{explain} {query}")))
    assert "ix_jobs_claim" in plan
    assert "TEMP B-TREE" not in plan
    assert "Sort" not in plan


def test_mlflow_ids_are_kept(engine: Engine) -> None:
    enqueue(engine, 1)
    first = claim(engine)
    queue.set_mlflow(engine, sweep_id=1, mlflow_id="e")
    queue.set_mlflow(engine, job_id=1, mlflow_id="r")
    queue.set_mlflow(engine, job_id=1, attempt=1, mlflow_id="a")
    queue.release(engine, first.lease)
    claim(engine)
    assert job(engine, 1).mlflow_run_id == "r"
    assert attempt(engine, 1, 1).mlflow_run_id == "a"
    with reading(engine) as session:
        assert session.scalar(select(SweepRow.mlflow_experiment_id)) == "e"
