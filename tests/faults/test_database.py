"""The database restarts, goes away, is slow, or is held by a process that does not move."""

import signal
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.cli.main import run
from orchestrator.database import engine as engines
from orchestrator.database.engine import connect, reading
from tests import servers
from tests.faults.conftest import MakeWorld
from tests.faults.proxy import Proxy, proxy
from tests.small_world import World, is_gone, small_config, trainers

STEPS = 20
QUICK = {"ORCH_TRAINER": "tests.faults.quick", "ORCH_STEPS": str(STEPS)}
CRASHING = "tests.faults.crashing"


@pytest.fixture
def between(postgres: servers.Server) -> Iterator[Proxy]:
    with proxy(postgres.url) as made:
        yield made


def two_jobs(world: World) -> list[int]:
    return world.enqueue(*(small_config(world.settings.home, n_latents=n) for n in (32, 64)))


def held_at_the_end(world: World) -> tuple[Path, dict[str, str]]:
    """Return a file, and what makes trainers wait with their last step while it is there."""
    hold = world.settings.home / "hold"
    hold.touch()
    return hold, {"ORCH_HOLD": str(hold)}


def whole(world: World, job: int, steps: int = STEPS) -> bool:
    return [point[0] for point in world.curve(job)] == [1024 * step for step in range(1, steps + 1)]


def test_f13_postgres_restarts_at_once_in_training(
    make_world: MakeWorld, database_url: str, postgres: servers.Server
) -> None:
    world = make_world(database_url=database_url)
    jobs = two_jobs(world)
    hold, waiting = held_at_the_end(world)
    workers = [world.work("--until-empty", "--name", name, module=CRASHING, **QUICK | waiting) for name in "ab"]
    world.wait(lambda: all(world.curve(job) for job in jobs))
    before = [trainers(worker)[0] for worker in workers]
    postgres.crash()
    time.sleep(1)
    postgres.start()
    assert [trainers(worker)[0] for worker in workers] == before, "no trainer was killed"
    hold.unlink()
    assert [worker.wait(120) for worker in workers] == [0, 0], world.said()
    for job in jobs:
        assert world.attempts(job) == [("max_tokens", 0)]
        assert whole(world, job)


def test_f14_postgres_is_away_for_too_long(make_world: MakeWorld, database_url: str, between: Proxy) -> None:
    world = make_world(database_url=database_url)
    (job, other) = two_jobs(world)
    through = {"ORCH_DATABASE_URL": between.before(database_url), "ORCH_OUTAGE_SECONDS": "1"}
    hold, waiting = held_at_the_end(world)
    worker = world.work(module=CRASHING, **QUICK, **through, **waiting)
    world.wait(lambda: world.has_checkpoint(job, 1))
    (trainer,) = trainers(worker)
    between.cut()
    world.wait(lambda: "outage: writing a checkpoint" in world.said())
    world.wait(lambda: is_gone(trainer))
    assert world.job(job).state == "running", "nobody could be told yet"
    between.mend()
    hold.unlink()
    world.wait(lambda: world.job(job).state == "succeeded" and world.job(other).state == "succeeded", 120)
    (preempted, _), (done, resumed_at) = world.attempts(job)
    assert (preempted, done) == ("preempted", "max_tokens")
    assert resumed_at
    assert (world.job(job).preemptions, world.job(job).failures) == (1, 0)
    assert whole(world, job)


def test_every_answer_takes_200_ms(
    make_world: MakeWorld, database_url: str, between: Proxy, redis: servers.Server
) -> None:
    with proxy(redis.url) as wire:
        between.answers_after = wire.answers_after = 0.2
        calm = {"heartbeat_seconds": 2, "lease_seconds": 12, "reconcile_seconds": 5}
        world = make_world(database_url=database_url, broker_url=wire.before(redis.url), **calm)
        (job,) = world.enqueue(small_config(world.settings.home))
        through = {"ORCH_DATABASE_URL": between.before(database_url), "ORCH_STEPS": "2"}
        assert world.work("--until-empty", module=CRASHING, **QUICK | through).wait(200) == 0, world.said()
    assert world.attempts(job) == [("max_tokens", 0)]
    assert whole(world, job, 2)


def frozen_in_a_claim(world: World, **variables: str) -> None:
    """Start a worker that is stopped within the transaction of its first claim."""
    stopped = {"ORCH_CRASH_AT": "before_claim_commit", "ORCH_CRASH_SIGNAL": "SIGSTOP"}
    world.work("--name", "frozen", module=CRASHING, **QUICK, **stopped, **variables)
    world.wait(lambda: (world.settings.home / "before_claim_commit.visited").exists(), 60)


def test_f06_a_process_stands_still_in_a_transaction_of_postgres(make_world: MakeWorld, database_url: str) -> None:
    world = make_world(database_url=database_url)
    held, free = two_jobs(world)
    patience = "?options=-c%20idle_in_transaction_session_timeout%3D3000"
    frozen_in_a_claim(world, ORCH_DATABASE_URL=database_url + patience)
    started = time.monotonic()
    worker = world.work("--until-empty", "--name", "other", module=CRASHING, **QUICK)
    world.wait(lambda: world.job(free).state == "succeeded", 60)
    assert worker.wait(60) == 0, world.said()  # the other one too, once the server has ended the session
    assert time.monotonic() - started < 60
    assert world.attempts(held) == [("max_tokens", 0)]
    world.workers[0].send_signal(signal.SIGCONT)
    world.wait(lambda: "the database answers again" in world.said() or "trying again" in world.said(), 30)
    assert world.attempts(held) == [("max_tokens", 0)]
    assert sessions(database_url + patience, "idle in transaction") == 0


def sessions(url: str, state: str) -> int:
    engine = connect(url)
    with reading(engine) as session:
        query = text("SELECT count(*) FROM pg_stat_activity WHERE state = :state AND datname = current_database()")
        found = int(session.scalar(query, {"state": state}))
    engine.dispose()
    return found


def test_f06_a_process_stands_still_in_a_transaction_of_sqlite(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever writes waits for as long as `busy_timeout` says, and is told; whoever reads does not notice."""
    job, _ = two_jobs(world)
    frozen_in_a_claim(world)
    monkeypatch.setenv("ORCH_HOME", str(world.settings.home))
    prepare = engines._prepare_sqlite

    def impatient(connection: sqlite3.Connection, record: object) -> None:
        prepare(connection, record)
        (full,) = connection.execute("PRAGMA busy_timeout").fetchone()
        assert full == 30_000
        connection.execute("PRAGMA busy_timeout=1000").close()

    monkeypatch.setattr(engines, "_prepare_sqlite", impatient)
    assert run(["status"]) == 0
    started = time.monotonic()
    assert run(["cancel", str(job)]) == 5
    assert 0.9 < time.monotonic() - started < 20
    said = capsys.readouterr().err
    assert "database is locked" in said
    assert "Another process holds the database" in said
    world.workers[0].send_signal(signal.SIGCONT)
    world.wait(lambda: world.job(job).state == "succeeded")
