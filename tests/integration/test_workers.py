"""Registered workers, and the queue as a whole paused: on both databases, and what a supervisor makes of it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, func, select, update

from orchestrator import queue, results
from orchestrator.config.job import JobConfig
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Attempt, WorkerRow
from orchestrator.errors import StorageError
from orchestrator.queue import workers
from tests.integration.test_supervisor import END, YIELD, Bench
from tests.queue_shorthand import WORKER, claim, enqueue, nothing_to_claim, run_out, state
from tests.small_world import small_world
from tests.worker_shorthand import silence

DAY = 86_400.0


def report(engine: Engine, token: str = "life 1", worker: queue.Worker = WORKER) -> workers.Desired:
    return workers.report(engine, worker, token=token, version="1.2", every_seconds=100.0)


def end_long_ago(engine: Engine, token: str, seconds: float) -> None:
    with transaction(engine) as session:
        session.execute(update(WorkerRow).where(WorkerRow.token == token).values(ended_at=db_now() - seconds))


def states(engine: Engine, **how: bool) -> list[tuple[str, str]]:
    return [(row.token, row.state) for row in results.registered_workers(engine, **how)]


def test_a_life(engine: Engine) -> None:
    enqueue(engine, 2)
    assert results.registered_workers(engine) == []
    assert report(engine) == "run"
    assert states(engine) == [("life 1", "idle")]
    lease = claim(engine).lease
    queue.heartbeat(engine, lease, lease_seconds=60, tokens_seen=5, tokens_per_second=100.0)
    (row,) = results.registered_workers(engine)
    assert (row.name, row.host, row.pid, row.device, row.version) == ("w1", "here", 1, "cpu", "1.2")
    assert (row.state, row.jobs, row.tokens_per_second) == ("at work", (1,), 100.0)
    silence(engine, "life 1", 99.0)
    assert 99 <= results.registered_workers(engine)[0].silent < 200
    report(engine)
    assert results.registered_workers(engine)[0].silent < 99
    workers.sign_off(engine, "life 1")
    assert states(engine) == []
    assert states(engine, ended=True) == [("life 1", "ended")]


def test_who_misses_reports_is_lost_until_it_comes_back(engine: Engine) -> None:
    report(engine)
    silence(engine, "life 1", 200.0)
    assert states(engine) == [("life 1", "idle")], "three reports of 100 s, and 5 s more"
    silence(engine, "life 1", 306.0)
    assert states(engine) == [("life 1", "lost")]
    report(engine)
    assert states(engine) == [("life 1", "idle")]


def test_wishes(engine: Engine) -> None:
    for token in ("a", "b", "c"):
        report(engine, token)
    workers.ask(engine, ["a", "b"], "drain")
    assert [report(engine, token) for token in ("a", "b", "c")] == ["drain", "drain", "run"]
    assert states(engine) == [("a", "draining"), ("b", "draining"), ("c", "idle")]
    workers.ask(engine, ["a"], "stop")
    workers.ask(engine, ["a"], "drain")
    assert report(engine, "a") == "stop", "it has let go of its jobs by now"
    workers.sign_off(engine, "b")
    workers.ask(engine, ["b"], "stop")
    with reading(engine) as session:
        assert session.get_one(WorkerRow, "b").desired == "drain"


def test_old_lives_are_forgotten(engine: Engine) -> None:
    for token in ("ended", "lost", "fresh", "alive"):
        report(engine, token)
    end_long_ago(engine, "ended", 8 * DAY)
    silence(engine, "lost", 8 * DAY)
    end_long_ago(engine, "fresh", 6 * DAY)
    report(engine, "alive")
    assert len(states(engine, ended=True)) == 4, "a report of one that is known strikes nobody out"
    report(engine, "new")
    assert {token for token, _ in states(engine, ended=True)} == {"fresh", "alive", "new"}
    assert workers.forget(engine, older_than=0.0) == 1
    assert {token for token, _ in states(engine, ended=True)} == {"alive", "new"}


def test_the_jobs_of_a_process_id_that_came_again_are_the_last_lifes(engine: Engine) -> None:
    enqueue(engine)
    report(engine, "before")
    with transaction(engine) as session:
        session.execute(update(WorkerRow).values(started_at=db_now() - DAY))
    report(engine, "after")
    claim(engine)
    assert [(row.token, row.jobs) for row in results.registered_workers(engine)] == [("before", ()), ("after", (1,))]


def test_why_a_job_waits_when_its_workers_leave(engine: Engine) -> None:
    def reason() -> str | None:
        return results.jobs(engine, ids=[2])[0].reason

    enqueue(engine, 2)
    assert reason() == "NoWorker"
    report(engine)
    assert reason() == "Priority"
    claim(engine)
    workers.ask(engine, ["life 1"], "drain")
    assert reason() == "WorkersLeaving"
    report(engine, "life 2")
    assert reason() == "Priority"
    silence(engine, "life 2", 306.0)
    assert reason() == "WorkersLeaving"
    silence(engine, "life 1", 306.0)
    assert reason() == "Priority", "nobody reports, but a lease is held"
    run_out(engine, 1)
    assert reason() == "NoWorker"
    queue.pause_queue(engine)
    assert reason() == "QueuePaused"


def test_a_paused_queue_gives_nothing_and_takes_nothing_away(engine: Engine) -> None:
    enqueue(engine, 3)
    leader = claim(engine)
    assert queue.pause_queue(engine)
    assert not queue.pause_queue(engine)
    assert results.paused_since(engine) is not None
    assert nothing_to_claim(engine)
    how = {"token": "t", "lease_seconds": 60.0}
    assert queue.claim_companion(engine, WORKER, leader=leader, **how) is None  # type: ignore[arg-type]
    assert queue.waiting(engine, limit=9) == []
    assert not queue.is_done(engine), "a job runs"
    assert queue.heartbeat(engine, leader.lease, lease_seconds=60) == "run"
    assert queue.claim(engine, WORKER, token=leader.lease.token, lease_seconds=60) is not None, "it was claimed before"
    assert queue.release(engine, leader.lease) == "queued"
    assert queue.is_done(engine)
    assert queue.resume_queue(engine)
    assert not queue.resume_queue(engine)
    assert results.paused_since(engine) is None
    assert not queue.is_done(engine)
    assert claim(engine).lease.job_id == 1


def test_no_claim_is_on_its_way_when_a_pause_returns(engine: Engine) -> None:
    """Three claimers race with each pause; what was claimed when it returned is all that is ever claimed."""
    enqueue(engine, 400)
    over, tries, failed = threading.Event(), [0] * 3, list[Exception]()

    def keep_claiming(mine: int) -> None:
        while not over.is_set():
            try:
                queue.claim(engine, WORKER, token=f"{mine}-{tries[mine]}", lease_seconds=60)
            except StorageError as error:
                failed.append(error)
                return
            tries[mine] += 1

    def attempts() -> int:
        with reading(engine) as session:
            return session.scalar(select(func.count()).select_from(Attempt)) or 0

    def each_tries_again() -> None:
        before = [*tries]
        while not failed and any(now < then + 2 for now, then in zip(tries, before, strict=True)):
            over.wait(0.005)

    threads = [threading.Thread(target=keep_claiming, args=(mine,)) for mine in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8 if engine.name == "postgresql" else 2):
            each_tries_again()
            queue.pause_queue(engine)
            claimed = attempts()
            each_tries_again()
            assert attempts() == claimed
            queue.resume_queue(engine)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert claimed > 0


def test_a_claim_of_a_paused_queue_reads_no_job(engine: Engine) -> None:
    enqueue(engine, 50)
    queue.pause_queue(engine)
    said: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *seen: said.append(seen[2]))
    assert nothing_to_claim(engine)
    picks = [text for text in said if "ORDER BY jobs.priority" in text]
    assert len(picks) == 1, "one statement, and nothing is locked"


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with small_world(tmp_path / "home", lease_seconds=20, reconcile_seconds=0.1, jobs_per_trainer=1) as world:
        yield Bench(world, monkeypatch)


def ask(bench: Bench, wish: workers.Desired) -> None:
    (row,) = results.registered_workers(bench.world.engine)
    workers.ask(bench.world.engine, [row.token], wish)


def test_a_draining_worker_finishes_what_it_runs_and_claims_no_more(bench: Bench) -> None:
    bench.trainer("while not os.path.exists(order.tokens_folder + '.go'): time.sleep(0.01); line.alive(0)\n" + END)
    (another,) = bench.world.enqueue(JobConfig(), name="another")
    home = bench.world.settings.home

    def drain() -> None:
        assert [row.state for row in results.registered_workers(bench.world.engine)] == ["at work"]
        ask(bench, "drain")
        bench.world.wait(lambda: any("asked to drain" in line for line in bench.said), 20)
        (home / "tokens.go").touch()

    assert bench.run(bench.when(bench.began, drain), until_empty=False) == "succeeded"
    assert bench.outcomes == ["converged"]
    assert state(bench.world.engine, another) == "queued"
    assert bench.world.attempts(another) == []
    assert states(bench.world.engine) == []


def test_an_idle_worker_that_is_to_drain_ends(bench: Bench) -> None:
    queue.pause_queue(bench.world.engine)
    idle = bench.when(lambda: states(bench.world.engine), lambda: ask(bench, "drain"))
    assert bench.run(idle, until_empty=False) == "queued"
    assert bench.outcomes == []


def test_asked_to_stop_it_releases_like_one_that_got_a_signal(bench: Bench) -> None:
    bench.trainer(YIELD)
    assert bench.run(bench.when(bench.began, lambda: ask(bench, "stop")), until_empty=False) == "queued"
    assert bench.outcomes == ["preempted"]
    assert bench.world.has_checkpoint(bench.job, 1)
    assert results.registered_workers(bench.world.engine, ended=True)[0].state == "ended"


def test_a_worker_that_drains_can_still_be_stopped(bench: Bench) -> None:
    bench.trainer(YIELD)

    def drain_then_stop() -> None:
        ask(bench, "drain")
        bench.world.wait(lambda: any("asked to drain" in line for line in bench.said), 20)
        ask(bench, "stop")

    assert bench.run(bench.when(bench.began, drain_then_stop), until_empty=False) == "queued"
    assert bench.outcomes == ["preempted"]


def test_until_empty_ends_where_all_that_waits_is_paused(bench: Bench) -> None:
    queue.pause_queue(bench.world.engine)
    assert bench.run() == "queued"


def test_a_registry_out_of_reach_stops_no_worker(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.trainer("point(1024)\n" + END)

    def away(*_: object, **__: object) -> workers.Desired:
        raise StorageError("away")

    monkeypatch.setattr(workers, "report", away)
    monkeypatch.setattr(workers, "sign_off", away)
    assert bench.run() == "succeeded"
    assert bench.outcomes == ["converged"]
    assert states(bench.world.engine, ended=True) == []


def test_a_second_worker_of_a_name_has_another(engine: Engine) -> None:
    assert workers.free_name(engine, "w1") == "w1"
    report(engine)
    assert workers.free_name(engine, "w1") == "w1-2"
    silence(engine, "life 1", 306.0)
    assert workers.free_name(engine, "w1") == "w1", "of a worker that is lost the name is free"
    assert workers.free_name(engine, "w1", is_new=True) == "w1-2", "unless nobody chose it"
    workers.sign_off(engine, "life 1")
    assert workers.free_name(engine, "w1") == "w1"
    assert workers.free_name(engine, "w1", is_new=True) == "w1-2", "a container that starts anew has its name again"


def test_workers_in_containers_of_one_machine_know_one_another(engine: Engine) -> None:
    one, two, other = (
        queue.Worker("w", host, 7, "cpu", machine) for host, machine in (("c1", "boot"), ("c2", "boot"), ("c3", "else"))
    )
    unknown = queue.Worker("w", "c4", 7, "cpu")
    for worker in (one, two, other, unknown):
        report(engine, f"life of {worker.host}", worker)
    assert workers.counts_beside(engine, one) == (1, 2)
    report(engine, "life beside it", one)
    assert workers.counts_beside(engine, one) == (2, 3)
    assert workers.counts_beside(engine, other) == (1, 1)
    assert workers.counts_beside(engine, unknown) == (1, 1)
    silence(engine, "life of c2", 306.0)
    workers.sign_off(engine, "life beside it")
    assert workers.counts_beside(engine, one) == (1, 1)
