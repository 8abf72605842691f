"""Redis forgets, goes away, comes back, and says old things again: the database alone decides."""

import time
from collections.abc import Iterator

import pytest
import redis as redis_client

from orchestrator import dispatch
from tests import servers
from tests.faults.conftest import MakeWorld
from tests.faults.proxy import Proxy, proxy
from tests.small_world import World, small_config

KEY = f"orch:{dispatch.QUEUE_NAME}"
QUICK = {"ORCH_TRAINER": "tests.faults.quick", "ORCH_STEPS": "2"}
NEVER = 600.0


@pytest.fixture
def between(redis: servers.Server) -> Iterator[Proxy]:
    with proxy(redis.url) as made:
        yield made


@pytest.fixture
def service(make_world: MakeWorld, database_url: str, redis: servers.Server) -> World:
    """A world whose workers look at the queue only when they are woken; lost wake-ups are sent again."""
    return make_world(database_url=database_url, broker_url=redis.url, poll_seconds=NEVER)


def idle_worker(world: World, name: str, **more: str) -> None:
    before = world.said().count("wake-ups come from")
    world.work("--name", name, module="tests.faults.crashing", **QUICK | more)
    world.wait(lambda: world.said().count("wake-ups come from") > before, 60)


def new_jobs(world: World, n: int, name: str) -> list[int]:
    return world.enqueue(*(small_config(world.settings.home, n_latents=32 + at) for at in range(n)), name=name)


def all_ran_once(world: World, jobs: list[int]) -> bool:
    done = all(world.job(job).state == "succeeded" for job in jobs)
    return done and all(world.attempts(job) == [("max_tokens", 0)] for job in jobs)


def test_f10_all_messages_are_lost_and_all_jobs_run(service: World, redis: servers.Server, between: Proxy) -> None:
    for name in ("one", "two"):
        idle_worker(service, name, ORCH_BROKER_URL=between.before(redis.url))
    between.cut()  # so that nobody takes a message before all are gone
    jobs = new_jobs(service, 12, "many")
    assert dispatch.wake(service.settings, jobs)
    client = redis_client.Redis.from_url(redis.url)
    assert client.llen(KEY) == len(jobs)
    client.flushall()
    assert {service.job(job).state for job in jobs} == {"queued"}
    between.mend()
    service.wait(lambda: all_ran_once(service, jobs), 120)


def test_f11_redis_is_killed_and_comes_back(service: World, redis: servers.Server) -> None:
    idle_worker(service, "one", ORCH_STEPS="30", ORCH_STEP_SECONDS="0.1")
    (during,) = new_jobs(service, 1, "during")
    assert dispatch.wake(service.settings, [during])
    service.wait(lambda: service.curve(during))
    redis.crash()
    (later,) = new_jobs(service, 1, "later")
    assert not dispatch.wake(service.settings, [later])
    service.wait(lambda: all_ran_once(service, [during]))
    redis.start()
    (last,) = new_jobs(service, 1, "last")
    service.wait(lambda: all_ran_once(service, [later, last]), 120)
    service.workers[0].terminate()
    assert service.workers[0].wait(30) == 0, service.said()
    assert "Traceback" not in service.said()


def test_f12_old_messages_come_again(service: World, redis: servers.Server) -> None:
    jobs = new_jobs(service, 3, "old")
    assert dispatch.wake(service.settings, jobs)
    client = redis_client.Redis.from_url(redis.url)
    old = client.lrange(KEY, 0, -1)
    assert len(old) == len(jobs)
    idle_worker(service, "one")
    service.wait(lambda: all_ran_once(service, jobs))
    for _ in range(3):
        client.rpush(KEY, *old)
    service.wait(lambda: client.llen(KEY) == 0, 60)
    time.sleep(0.5)
    assert all_ran_once(service, jobs)
    (fresh,) = new_jobs(service, 1, "fresh")
    assert dispatch.wake(service.settings, [fresh])
    service.wait(lambda: all_ran_once(service, [fresh]), 60)
