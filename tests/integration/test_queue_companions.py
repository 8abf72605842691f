"""Conformance: jobs of one stream are claimed for one trainer, by the rules that hold for every claim."""

import threading
from typing import Any

import pytest
from sqlalchemy import Engine, update

from orchestrator import queue
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import Job
from orchestrator.queue import Claim
from orchestrator.sweep.sweep import Limits, Sweep
from tests.queue_shorthand import WORKER, attempt, claim, enqueue, events, fail, job, leases, lose, ref, state


def companion(engine: Engine, leader: Claim, token: str = "", **how: Any) -> Claim | None:
    token = token or f"{leader.lease.token}-{len(leases(engine))}"
    return queue.claim_companion(engine, WORKER, leader=leader, token=token, lease_seconds=60.0, **how)


def companions(engine: Engine, leader: Claim, **how: Any) -> list[int]:
    found: list[int] = []
    while got := companion(engine, leader, **how):
        found.append(got.lease.job_id)
    return found


def put(engine: Engine, name: str, *parts: dict[str, Any], priority: int = 0, **limits: Any) -> list[int]:
    configs = tuple(parse(part) for part in parts)
    done = queue.enqueue(engine, Sweep(name, configs, limits=Limits(**limits)), priority=priority)
    return [job_id for job_id in done.job_ids if job_id is not None]


def test_what_decides_the_stream_is_in_the_key_and_nothing_else() -> None:
    key = JobConfig().stream_key
    same: list[dict[str, Any]] = [
        {"sae": {"n_latents": 64, "k": 3, "activation": "relu", "normalize": "none"}},
        {"subject": {"layer": 2}},
        {"subject": {"layer": 2, "site": "mlp_post"}},
        {"subject": {"hook": "transformer.h.1"}},
        {"optimizer": {"lr": 0.1}},
        {"stop": {"rule": "max_tokens"}},
        {"training": {"seed": 3, "max_tokens": 4096, "dead_after_tokens": 5, "first_point_tokens": 4096}},
    ]
    other: list[dict[str, Any]] = [
        {"subject": {"model": "another"}},
        {"subject": {"revision": "main"}},
        {"subject": {"dtype": "bfloat16"}},
        {"subject": {"dtype": "auto"}},
        {"subject": {"trust_remote_code": True}},
        {"data": {"seed": 1}},
        {"data": {"context_length": 64}},
        {"training": {"batch_tokens": 1024}},
        {"training": {"shuffle_tokens": 131_072}},
        {"training": {"heldout_tokens": 4096}},
    ]
    assert all(parse(part).stream_key == key for part in same)
    assert len({key, *(parse(part).stream_key for part in other)}) == 1 + len(other)


def test_companions_are_claims_like_any_other(engine: Engine) -> None:
    ids = enqueue(engine, 3)
    leader = claim(engine)
    assert companions(engine, leader) == ids[1:]
    assert leases(engine) == set(ids)
    for job_id in ids:
        assert state(engine, job_id) == "running"
        assert events(engine, job_id)[-1] == "claimed"
        assert attempt(engine, job_id, 1).worker == WORKER.name
    assert companion(engine, leader) is None


def test_a_companion_brings_its_own_config_and_lease(engine: Engine) -> None:
    enqueue(engine, 2)
    leader = claim(engine)
    other = companion(engine, leader, "mine")
    assert other
    assert (other.lease.job_id, other.lease.attempt, other.lease.token) == (2, 1, "mine")
    assert other.config != leader.config
    assert other.stream_key == leader.stream_key == leader.job_config.stream_key
    queue.release(engine, other.lease, outcome="paused")
    assert queue.heartbeat(engine, leader.lease, lease_seconds=60) == "run", "the neighbour's end is not its own"


def test_only_jobs_of_the_same_stream(engine: Engine) -> None:
    (first,) = put(engine, "a", {})
    put(engine, "b", {"data": {"seed": 1}}, {"training": {"batch_tokens": 1024}})
    near = put(engine, "c", {"sae": {"k": 5}}, {"subject": {"layer": 1}})
    leader = claim(engine)
    assert leader.lease.job_id == first
    assert companions(engine, leader) == near


def test_priority_orders_companions_too(engine: Engine) -> None:
    enqueue(engine, 1, name="leader", priority=9)
    low = enqueue(engine, 2, name="low", start=10)
    high = enqueue(engine, 1, name="high", start=20, priority=5)
    assert companions(engine, claim(engine)) == [*high, *low]


def test_jobs_without_a_key_are_alone(engine: Engine) -> None:
    enqueue(engine, 3)
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id.in_([1, 2])).values(stream_key=None))
    leader = claim(engine)
    assert leader.stream_key is None
    assert companion(engine, leader) is None


def _lost_twice(engine: Engine, lease: queue.Lease) -> None:
    lose(engine, lease.job_id)
    assert claim(engine).stream_key is not None, "a worker that is lost is no job's fault: it shares again"
    lose(engine, lease.job_id)


@pytest.mark.parametrize("how", [fail, _lost_twice], ids=["failed", "lost"])
def test_what_failed_is_trained_alone(engine: Engine, how: Any) -> None:
    enqueue(engine, 3)
    how(engine, claim(engine).lease)
    again = claim(engine)
    assert again.lease.job_id == 1
    assert again.stream_key is None, "as a leader it takes nobody"
    queue.release(engine, again.lease)
    with transaction(engine) as session:  # the second goes first now
        session.execute(update(Job).where(Job.id == 2).values(priority=1))
    leader = claim(engine)
    assert leader.lease.job_id == 2
    assert companions(engine, leader) == [3], "and nobody takes it"


def test_a_crash_in_company_halves_the_next_one_and_costs_nothing(engine: Engine) -> None:
    enqueue(engine, 6)
    leader = claim(engine)
    held = [leader, *filter(None, (companion(engine, leader, held=at) for at in range(1, 4)))]
    for one in held:
        assert queue.crashed_in_company(engine, one.lease, error="SIGSEGV", exit_code=-11, n_jobs=4) == "queued"
    assert [(job(engine, at).failures, job(engine, at).company) for at in (1, 5)] == [(0, 2), (0, None)]
    again = claim(engine)
    assert (again.lease.job_id, again.company) == (1, 2)
    second = companion(engine, again, held=1)
    assert second is not None
    assert second.lease.job_id == 2
    third = companion(engine, again, held=2)
    assert third is not None
    assert third.lease.job_id == 5, "not one of those that share with one other"


def test_the_cursor_must_be_the_same(engine: Engine) -> None:
    ids = enqueue(engine, 4)
    claims = [claim(engine) for _ in ids]
    for got, places in zip(claims, [(128, 256), (256,), (128,), ()], strict=True):
        for tokens in places:
            queue.checkpointed(engine, got.lease, ref(tokens))
        queue.release(engine, got.lease)
    leader = claim(engine)
    assert (leader.lease.job_id, leader.cursor) == (1, 256)
    assert companions(engine, leader) == [2]
    start = claim(engine)
    assert (start.lease.job_id, start.cursor) == (3, 128)
    assert companions(engine, start) == []


def test_waiting_paused_and_cancelled_jobs_are_left_out(engine: Engine) -> None:
    ids = enqueue(engine, 4)
    leader = claim(engine)
    queue.pause(engine, [ids[1]])
    queue.cancel(engine, [ids[2]])
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == ids[3]).values(not_before=db_now() + 1000))
    assert companion(engine, leader) is None


def test_a_paused_sweep_gives_no_companions(engine: Engine) -> None:
    enqueue(engine, 1)
    enqueue(engine, 2, name="other", start=10)
    leader = claim(engine)
    queue.pause_sweep(engine, 2)
    assert companion(engine, leader) is None
    queue.resume_sweep(engine, 2)
    assert len(companions(engine, leader)) == 2


def test_caps_hold(engine: Engine) -> None:
    enqueue(engine, 4, max_parallel=2)
    free = enqueue(engine, 2, name="free", start=10)
    leader = claim(engine)
    assert companions(engine, leader) == [2, *free], "one more of its own sweep, and what has no cap"


def test_caps_hold_against_many_at_once(engine: Engine) -> None:
    enqueue(engine, 12, max_parallel=5)
    found: list[int] = []

    def take(name: str) -> None:
        leader = queue.claim(engine, WORKER, token=name, lease_seconds=60)
        if leader is None:
            return
        found.append(leader.lease.job_id)
        for number in range(6):
            token = f"{name}-{number}"
            got = queue.claim_companion(engine, WORKER, leader=leader, token=token, lease_seconds=60)
            found.extend([got.lease.job_id] if got else [])

    threads = [threading.Thread(target=take, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 5


def test_what_does_not_fit_is_passed_over(engine: Engine) -> None:
    put(engine, "s", {}, {"sae": {"n_latents": 4096}}, {"sae": {"n_latents": 64}}, {"sae": {"n_latents": 2048}})
    leader = claim(engine)
    small = companion(engine, leader, fits=lambda config: (config.sae.n_latents or 0) < 100)
    assert small
    assert small.lease.job_id == 3
    assert companion(engine, leader, fits=lambda _: False) is None
    assert [state(engine, i) for i in (2, 4)] == ["queued", "queued"]


def test_a_config_nobody_can_read_is_left_to_who_takes_it_for_itself(engine: Engine) -> None:
    ids = enqueue(engine, 3)
    with transaction(engine) as session:
        session.execute(update(Job).where(Job.id == ids[1]).values(config='{"sae": {"k": 0}}'))
    leader = claim(engine)
    assert companions(engine, leader, fits=lambda _: True) == [ids[2]]
    assert queue.claim(engine, WORKER, token="next", lease_seconds=60) is None
    assert state(engine, ids[1]) == "failed"


def test_a_claim_whose_answer_was_lost_is_adopted(engine: Engine) -> None:
    enqueue(engine, 4)
    leader = claim(engine)
    first = companion(engine, leader, "asked once")
    again = companion(engine, leader, "asked once", fits=lambda _: False)
    assert first
    assert again == first
    assert job(engine, first.lease.job_id).attempt == 1
    other = queue.claim(engine, WORKER, token="asked once", lease_seconds=60)
    assert other == first, "whoever asks next with that token, also as a leader"


def test_jobs_of_open_precision_share_only_where_it_came_to_the_same(engine: Engine) -> None:
    ids = put(engine, "s", *({"subject": {"dtype": "auto"}, "training": {"seed": seed}} for seed in range(5)))
    begun = {ids[0]: "bfloat16", ids[1]: "float32", ids[2]: "bfloat16"}
    claims = [claim(engine) for _ in begun]
    assert [one.subject_dtype for one in claims] == [None] * 3
    for one, dtype in zip(claims, begun.values(), strict=True):
        queue.begin(engine, one.lease, {"subject_dtype": dtype}, 0)
        queue.release(engine, one.lease, outcome="preempted", reason="left before it was saved")
    leader = claim(engine)
    assert (leader.lease.job_id, leader.subject_dtype) == (ids[0], "bfloat16")
    assert companions(engine, leader) == [ids[2]]
    leader = claim(engine)
    assert (leader.lease.job_id, leader.subject_dtype) == (ids[1], "float32")
    assert companions(engine, leader) == []
    assert companions(engine, claim(engine)) == [ids[4]], "those that never began are alike"
