"""No clock but the database's decides, and a step of that one ends no lease early."""

from typing import Any

from sqlalchemy import Engine, event

from orchestrator import queue
from tests.conformance import clocks
from tests.queue_shorthand import claim, enqueue


def test_f17_a_workers_clock_two_hours_off(engine: Engine) -> None:
    clocks.the_workers_clock_is_wrong(engine)


def test_f18_the_databases_clock_jumps_back_five_minutes(engine: Engine) -> None:
    clocks.the_databases_clock_jumps_back(engine)


def test_what_asks_for_the_time_is_compiled_once(engine: Engine) -> None:
    """A heartbeat was three times as dear while the clock had no place in SQLAlchemy's cache."""
    enqueue(engine)
    lease = claim(engine).lease
    queue.heartbeat(engine, lease, lease_seconds=60.0)
    found = []

    def note(*given: Any) -> None:
        if given[4].compiled:  # not SQLite's BEGIN
            found.append(given[4].cache_hit.name)

    event.listen(engine, "after_cursor_execute", note)
    queue.heartbeat(engine, lease, lease_seconds=60.0)
    event.remove(engine, "after_cursor_execute", note)
    assert set(found) == {"CACHE_HIT"}
