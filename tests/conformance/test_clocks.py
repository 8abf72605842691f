"""No clock but the database's decides, and a step of that one ends no lease early."""

from sqlalchemy import Engine

from tests.conformance import clocks


def test_f17_a_workers_clock_two_hours_off(engine: Engine) -> None:
    clocks.the_workers_clock_is_wrong(engine)


def test_f18_the_databases_clock_jumps_back_five_minutes(engine: Engine) -> None:
    clocks.the_databases_clock_jumps_back(engine)
