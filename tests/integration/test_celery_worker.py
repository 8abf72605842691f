"""The service mode: `python -m worker` as a Celery worker on a real Redis and a real PostgreSQL."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import dispatch
from orchestrator.settings import Settings
from tests import servers
from tests.small_world import LONG, SYNTHETIC, World, small_config, small_world

NEVER = 600.0


@pytest.fixture
def world(postgres_settings: Settings, redis_url: str, tmp_path: Path) -> Iterator[World]:
    """A world whose workers look at the queue only when they are woken."""
    service = {"database_url": postgres_settings.database_url, "broker_url": redis_url}
    with small_world(tmp_path / "home", **service, poll_seconds=NEVER, reconcile_seconds=NEVER) as made:
        yield made


def test_a_wake_up_reaches_an_idle_worker_and_the_sweep_finishes(world: World) -> None:
    worker = world.work("--name", "celery")
    world.wait(lambda: "wake-ups come from redis://" in world.said(), 30)
    time.sleep(1)
    jobs = world.enqueue(*(small_config(SYNTHETIC, max_tokens=2048, n_latents=n) for n in (32, 48)))
    woken_at = time.monotonic()
    assert dispatch.wake(world.settings, jobs)
    world.wait(lambda: world.job(jobs[0]).state == "running", 10)
    assert time.monotonic() - woken_at < 3
    for job in jobs:
        world.wait_state(job, "succeeded")
        assert world.attempts(job) == [("max_tokens", 0)]
    worker.terminate()
    assert worker.wait(20) == 0, world.said()
    assert "Traceback" not in world.said()


def test_f19_sigterm_in_training_checkpoints_and_a_second_worker_takes_over(world: World) -> None:
    (job,) = world.enqueue(small_config(SYNTHETIC, max_tokens=LONG))
    first = world.work("--name", "first")
    world.wait(lambda: world.is_in_training(job, 1))
    first.terminate()
    assert first.wait(30) == 0, world.said()
    assert world.job(job).state == "queued"
    second = world.work("--name", "second", "--until-empty")
    assert second.wait(90) == 0, world.said()
    (preempted, _), (done, resumed_at) = world.attempts(job)
    assert (preempted, done) == ("preempted", "max_tokens")
    assert resumed_at


def test_f11_with_the_broker_away_workers_poll(postgres_settings: Settings, tmp_path: Path) -> None:
    away = f"redis://127.0.0.1:{servers.free_port()}/0"
    service = {"database_url": postgres_settings.database_url, "broker_url": away}
    with small_world(tmp_path / "home", **service) as world:
        (job,) = world.enqueue(small_config(SYNTHETIC))
        assert not dispatch.wake(world.settings, [job])
        worker = world.work()
        world.wait(lambda: world.job(job).attempt == 1, 30)
        worker.terminate()
        assert worker.wait(30) == 0, world.said()
