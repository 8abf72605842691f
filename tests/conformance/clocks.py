"""Scenarios in which a clock is wrong: the worker's, which nobody asks, or the database's, which all ask."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
from sqlalchemy import Engine

from orchestrator import queue, results
from orchestrator.database import engine as database
from tests.conformance.planted import Edit, edited
from tests.conformance.promises import broken_promises
from tests.queue_shorthand import attempt, claim, enqueue, fail, leases, result, run_out, state
from tests.worker_shorthand import report

HOURS = (-2, 2)


def the_workers_clock_is_wrong(engine: Engine) -> None:
    """Two hours slow, two hours fast: leases end when the database says so, and times stand in order."""
    right = time.time
    for hours in HOURS:
        (job_id,) = enqueue(engine, start=hours + 2)
        before = right()
        with patch("time.time", lambda hours=hours: right() + 3600.0 * hours):
            lease = claim(engine, seconds=60.0).lease
            assert queue.heartbeat(engine, lease, lease_seconds=60.0, tokens_seen=1) == "run"
            (held,) = results.workers(engine)
            assert 0 < held.lease_left <= 60.0
            assert queue.release_expired(engine, grace_seconds=0.0) == []
            run_out(engine, job_id)
            assert queue.release_expired(engine, grace_seconds=0.0) == [job_id]
            again = claim(engine).lease
            fail(engine, again)
            queue.finish(engine, claim(engine).lease, result())
        times = [before - 1, *(attempt(engine, job_id, number).started_at for number in (1, 2, 3)), right() + 1]
        assert times == sorted(times)
        assert state(engine, job_id) == "succeeded"
    assert broken_promises(engine) == []


@contextmanager
def database_clock_moved(engine: Engine, seconds: float) -> Iterator[None]:
    """Let the database's clock be wrong for a while, for all who ask it."""
    shift = f" + {seconds}"
    with (
        edited(Edit(database._now_sqlite, "* 86400.0)", f"* 86400.0{shift})"), engine),
        edited(Edit(database._now_postgres, "::double precision)", f"::double precision{shift})"), engine),
    ):
        yield


def the_databases_clock_jumps_back(engine: Engine) -> None:
    """Five minutes: a lease lasts longer by that much, never shorter, and once more after a heartbeat."""
    enqueue(engine)
    lease = claim(engine, seconds=60.0).lease
    report(engine, "watch")
    report(engine, "watch", elapsed=0.0)
    assert results.last_clock_step(engine, within=60.0) is None
    with database_clock_moved(engine, -300.0):
        assert report(engine, "watch", elapsed=0.0) == "run"
        alarm = results.last_clock_step(engine, within=60.0)
        assert alarm is not None
        assert alarm["worker"] == "watch"
        assert alarm["seconds"] == pytest.approx(-300.0, abs=20.0)
        (held,) = results.workers(engine)
        assert 300.0 < held.lease_left <= 360.0
        assert queue.release_expired(engine, grace_seconds=0.0) == []
        assert queue.heartbeat(engine, lease, lease_seconds=60.0) == "run"
        (held,) = results.workers(engine)
        assert 0 < held.lease_left <= 60.0, "renewed by the clock that is in force"
        assert queue.release_expired(engine, grace_seconds=0.0) == []
        run_out(engine, 1)
        assert queue.release_expired(engine, grace_seconds=0.0) == [1]
        assert leases(engine) == set()
    queue.finish(engine, claim(engine).lease, result())
    assert broken_promises(engine) == []
