"""Wake-ups over a real Redis: they arrive, they expire, and a broker that is away holds up nobody."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis as redis_client
from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.dispatch import MAX_MESSAGES, QUEUE_NAME, TASK_NAME, Reconciled, celery_settings, reconcile, wake
from orchestrator.errors import ConfigError
from orchestrator.settings import Settings
from tests.queue_shorthand import claim, enqueue, run_out

KEY = f"orch:{QUEUE_NAME}"


@pytest.fixture
def broker(redis_url: str) -> Iterator["redis_client.Redis"]:
    client = redis_client.Redis.from_url(redis_url)
    client.flushdb()
    yield client
    client.close()


@pytest.fixture
def served(redis_url: str, broker: object) -> Settings:
    return Settings(broker_url=redis_url)


def test_a_wake_up_is_a_small_message_that_expires(served: Settings, broker: "redis_client.Redis") -> None:
    assert wake(served, [7, 8]) is True
    messages = [json.loads(raw) for raw in broker.lrange(KEY, 0, -1)]
    assert [message["headers"]["task"] for message in messages] == [TASK_NAME] * 2
    bodies = [json.loads(base64.b64decode(message["body"])) for message in messages]
    assert sorted(body[0] for body in bodies) == [[7], [8]]
    assert all(message["headers"]["expires"] for message in messages)
    assert all(len(raw) < 2000 for raw in broker.lrange(KEY, 0, -1))


def test_a_large_sweep_sends_few_messages(served: Settings, broker: "redis_client.Redis") -> None:
    assert wake(served, range(1, 1000))
    assert broker.llen(KEY) == MAX_MESSAGES


def test_nobody_to_wake(served: Settings, broker: "redis_client.Redis") -> None:
    assert wake(served, []) is True
    assert wake(Settings(), [1]) is True
    assert broker.llen(KEY) == 0


def test_a_broker_that_is_away_is_a_quick_no() -> None:
    start = time.monotonic()
    assert wake(Settings(broker_url="redis://127.0.0.1:1/0"), [1]) is False
    assert time.monotonic() - start < 4


def test_a_broker_that_says_nothing_is_a_quick_no() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        assert wake(Settings(broker_url=f"redis://127.0.0.1:{port}/0"), [1]) is False
        assert time.monotonic() - start < 6


@pytest.mark.parametrize("url", ["amqp://u:secret@h//", "nonsense", "redis:/h"])
def test_a_broker_url_must_be_redis(url: str) -> None:
    with pytest.raises(ConfigError, match="not a Redis URL") as told:
        wake(Settings(broker_url=url), [1])
    assert "secret" not in str(told.value)


def test_what_sender_and_worker_share() -> None:
    shared = celery_settings(Settings(broker_url="redis://h:6379/0"))
    assert shared["task_acks_late"] is False
    assert shared["worker_prefetch_multiplier"] == 1
    assert shared["worker_disable_prefetch"] is True
    assert shared["broker_connection_max_retries"] is None
    assert "result_backend" not in shared


def test_reconcile_without_a_broker(engine: Engine, settings: Settings) -> None:
    enqueue(engine, 2)
    claim(engine)
    run_out(engine, 1)
    assert reconcile(engine, settings, release=False) == Reconciled([], 0)
    assert reconcile(engine, settings) == Reconciled([1], 0)
    assert reconcile(engine, settings) == Reconciled([], 0)


def test_lost_wake_ups_are_sent_again_and_not_heaped(
    engine: Engine, settings: Settings, served: Settings, broker: "redis_client.Redis"
) -> None:
    both = replace(settings, broker_url=served.broker_url)
    enqueue(engine, 3)
    queue.pause(engine, [3])
    assert reconcile(engine, both).woken == 2
    assert reconcile(engine, both).woken == 0
    broker.flushdb()
    assert reconcile(engine, both).woken == 2
    claim(engine)
    claim(engine)
    broker.flushdb()
    assert reconcile(engine, both).woken == 0


def test_reconcile_with_the_broker_away(engine: Engine, settings: Settings) -> None:
    enqueue(engine, 2)
    claim(engine)
    run_out(engine, 1)
    away = replace(settings, broker_url="redis://127.0.0.1:1/0")
    assert reconcile(engine, away) == Reconciled([1], 0)


def test_waking_from_many_threads(served: Settings, broker: "redis_client.Redis") -> None:
    answers: list[bool] = []
    threads = [threading.Thread(target=lambda: answers.append(wake(served, [1]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 4
    assert broker.llen(KEY) == 4
