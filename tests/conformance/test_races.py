"""Two connections, or sixteen, meet; each scenario is one that a planted bug fails."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine

from orchestrator.database.schema import open_database
from orchestrator.settings import Settings
from tests.conformance import races

Scenario = Callable[[Engine], None]
ONLY_WITH_ROW_LOCKS = (
    races.a_claim_passes_over_a_frozen_claim,
    races.a_reaper_passes_over_a_frozen_worker,
    races.a_lease_counts_from_when_it_is_given,
    races.the_last_place_is_taken_once,
)
"""SQLite has one lock for all of the database: there is nobody to pass over."""


@pytest.fixture
def postgres_engine(postgres_settings: Settings) -> Iterator[Engine]:
    engine = open_database(postgres_settings)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("scenario", ONLY_WITH_ROW_LOCKS)
def test_row_locks(postgres_engine: Engine, scenario: Scenario) -> None:
    scenario(postgres_engine)


def test_a_worker_that_wakes_while_it_is_judged(engine: Engine) -> None:
    races.a_worker_wakes_while_it_is_judged(engine)


def test_f16_sixteen_writers_at_once(engine: Engine) -> None:
    races.many_write_at_once(engine)


def test_f21_cancelled_while_it_finishes(engine: Engine) -> None:
    races.cancelled_while_it_finishes(engine)


def test_f21_cancelled_while_it_is_claimed(engine: Engine) -> None:
    races.cancelled_while_it_is_claimed(engine)
