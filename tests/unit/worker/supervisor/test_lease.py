"""A held lease over heartbeats, an outage of the database, and a loss."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from orchestrator import queue
from orchestrator.config.job import JobConfig
from orchestrator.curves.point import Point, point_of
from orchestrator.database.engine import reading
from orchestrator.database.models import CurvePoint, Job, LeaseRow
from orchestrator.database.schema import open_database
from orchestrator.errors import StorageError
from orchestrator.settings import Settings
from orchestrator.sweep.sweep import Sweep
from worker.supervisor.lease import RETRY_SECONDS, HeldLease, Status

WORKER = queue.Worker("one", "here", 1, "cpu")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Weather:
    """Makes the database unreachable for writes that ask it first."""

    is_away = False

    def check(self) -> None:
        if self.is_away:
            raise StorageError("away")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = open_database(settings)
    queue.enqueue(engine, Sweep("small", (JobConfig(),)))
    yield engine
    engine.dispose()


@pytest.fixture
def weather(monkeypatch: pytest.MonkeyPatch) -> Weather:
    weather, heartbeat = Weather(), queue.heartbeat

    def checked(*arguments: object, **named: object) -> queue.Desired:
        weather.check()
        return heartbeat(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(queue, "heartbeat", checked)
    return weather


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def held(engine: Engine, settings: Settings, clock: Clock) -> HeldLease:
    claim = queue.claim(engine, WORKER, token="token", lease_seconds=90)
    assert claim
    return HeldLease(engine, claim.lease, settings, now=clock)


def lease_row(engine: Engine) -> LeaseRow:
    with reading(engine) as session:
        row = session.scalars(select(LeaseRow)).one()
        session.expunge_all()
    return row


def tokens_stored(engine: Engine) -> list[int]:
    with reading(engine) as session:
        return list(session.scalars(select(CurvePoint.tokens_seen).order_by(CurvePoint.tokens_seen)))


def point(tokens: int) -> Point:
    return point_of(dict.fromkeys(Point._fields[:12], 0.5) | {"tokens_seen": tokens})


def test_a_heartbeat_renews_reports_and_waits_for_its_time(held: HeldLease, engine: Engine, clock: Clock) -> None:
    before = lease_row(engine).expires_at
    assert held.heartbeat(Status(512, 99.5)) == "run"
    row = lease_row(engine)
    assert row.expires_at > before
    assert (row.tokens_seen, row.tokens_per_second) == (512, 99.5)
    held.heartbeat(Status(1024))
    assert lease_row(engine).tokens_seen == 512
    clock.now += 2.1
    held.heartbeat(Status(1024))
    assert lease_row(engine).tokens_seen == 1024


@pytest.mark.parametrize("wish", ["pause", "cancel"])
def test_a_heartbeat_brings_the_wish(held: HeldLease, engine: Engine, wish: str) -> None:
    getattr(queue, wish)(engine, [held.lease.job_id])
    assert held.heartbeat(Status()) == wish
    assert held.desired == wish


def test_writes_wait_for_the_database_in_order(held: HeldLease, engine: Engine, clock: Clock, weather: Weather) -> None:
    def record(tokens: int) -> None:
        def write(e: Engine, lease: queue.Lease) -> None:
            weather.check()
            queue.record(e, lease, [point(tokens)])

        held.write(write)

    weather.is_away = True
    record(512)
    record(1024)
    clock.now += 1.0
    assert held.away_seconds == 1.0
    assert not held.flush()
    weather.is_away = False
    record(2048)  # the next try is not due yet: all three wait, in order
    assert tokens_stored(engine) == []
    clock.now += RETRY_SECONDS
    assert held.heartbeat(Status()) == "run"
    assert tokens_stored(engine) == [512, 1024, 2048]
    assert held.away_seconds == 0


def test_an_outage_of_heartbeats_is_measured_from_its_start(held: HeldLease, clock: Clock, weather: Weather) -> None:
    weather.is_away = True
    for _ in range(5):
        held.heartbeat(Status())
        clock.now += 10
    assert held.away_seconds == 50
    weather.is_away = False
    assert held.heartbeat(Status()) == "run"
    assert held.away_seconds == 0


def test_the_end_is_tried_again_as_long_as_there_is_patience(
    held: HeldLease, engine: Engine, clock: Clock, weather: Weather
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        clock.now += seconds
        weather.is_away = len(pauses) < 3

    def release(e: Engine, lease: queue.Lease) -> None:
        weather.check()
        queue.release(e, lease)

    weather.is_away = True
    held.write(release)
    assert held.settle(patience=lambda: True, pause=pause)
    assert len(pauses) == 3
    with reading(engine) as session:
        assert session.get_one(Job, held.lease.job_id).state == "queued"


def test_without_patience_the_end_is_left_to_the_others(held: HeldLease, engine: Engine, weather: Weather) -> None:
    weather.is_away = True
    held.write(lambda *_: weather.check())
    assert not held.settle(patience=lambda: False)
    assert not held.is_written
    with reading(engine) as session:
        assert session.get_one(Job, held.lease.job_id).state == "running"


def test_a_lost_lease_is_told_and_nothing_is_written(held: HeldLease, engine: Engine, clock: Clock) -> None:
    queue.release(engine, held.lease)
    with pytest.raises(queue.LeaseLost):
        held.heartbeat(Status())
    with pytest.raises(queue.LeaseLost):
        held.write(lambda e, lease: queue.record(e, lease, [point(512)]))
    assert tokens_stored(engine) == []
    held.forget()
    assert held.flush()
