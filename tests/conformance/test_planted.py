"""Every planted bug is caught by a scenario which the real queue passes, on each database where the bug can show."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine

from orchestrator.database.schema import open_database
from orchestrator.settings import Settings
from tests.conformance import clocks, races, walks
from tests.conformance.planted import PLANTED, planted
from tests.conformance.queue_machine import QueueMachine

Scenario = Callable[[Engine], None]
CATCHES: dict[str, Scenario] = {
    "state-only guard": walks.a_zombie_beats,
    "id-only guard": walks.a_zombie_finishes_what_waits,
    "unfenced heartbeat": walks.a_zombie_beats,
    "unfenced curve": walks.a_zombie_records,
    "unfenced checkpoint": walks.a_zombie_saves,
    "claim without state check": walks.cancelled_before_it_ran,
    "claim not adopted": walks.a_claim_loses_its_answer,
    "claim forgets the backoff": walks.a_failure_waits,
    "poison may share a trainer": walks.what_failed_is_trained_alone,
    "companion from another place": walks.companions_start_from_one_place,
    "finish not idempotent": walks.a_finish_loses_its_answer,
    "finish in two transactions": walks.a_finish_loses_its_answer,
    "cancel wins over finish": walks.finished_after_a_cancel,
    "ending counted twice": walks.a_release_loses_its_answer,
    "failure forgets the wish": walks.failed_after_a_cancel,
    "lease outlives its attempt": walks.a_finish_loses_its_answer,
    "begin keeps the old tail": walks.begins_before_its_curve_ends,
    "checkpoint forgives nothing": walks.saves_after_a_loss,
    "expiry ignores a cancel": walks.lost_after_a_cancel,
    "expiry without grace": walks.silent_for_less_than_the_grace,
    "cancel does not wait for the worker": walks.finished_after_a_cancel,
    "retry beside its replacement": walks.retried_beside_its_replacement,
    "unfenced scores": walks.a_zombie_measures,
    "family measured twice": walks.scores_lose_their_answer,
    "failure over a measured family": walks.a_measured_family_fails,
    "evaluated with a family missing": walks.an_evaluation_ends_early,
    "begin keeps the tail of a lens": walks.a_lens_is_trained_by_a_later_attempt,
    "a lens of another attempt": walks.a_lens_is_trained_by_a_later_attempt,
    "a lens without a lease": walks.a_zombie_brings_a_lens,
    "a lens that was cancelled is there": walks.a_lens_is_asked_for_after_a_cancel,
    "two-step reaper": races.a_worker_wakes_while_it_is_judged,
    "the worker's clock": clocks.the_workers_clock_is_wrong,
    "claim waits for a frozen claim": races.a_claim_passes_over_a_frozen_claim,
    "reaper waits for a frozen worker": races.a_reaper_passes_over_a_frozen_worker,
    "now() for clock_timestamp()": races.a_lease_counts_from_when_it_is_given,
    "ceiling without a lock": races.the_last_place_is_taken_once,
    "SQLite begins without its lock": races.many_write_at_once,
}
"""The named conformance scenario that must fail under each bug."""
ONLY_ON = {
    "claim waits for a frozen claim": "postgresql",
    "reaper waits for a frozen worker": "postgresql",
    "now() for clock_timestamp()": "postgresql",
    "ceiling without a lock": "postgresql",
    "SQLite begins without its lock": "sqlite",
}
"""SQLite has one lock for all of the database, and takes it at once; PostgreSQL has one for each row."""
BOTH = [(where, name) for name in PLANTED for where in ("sqlite", "postgresql") if ONLY_ON.get(name, where) == where]
PASSED = sorted({(where, CATCHES[name]) for where, name in BOTH}, key=lambda pair: (pair[0], pair[1].__name__))
FOUND_BY_CHANCE = (
    "state-only guard",
    "id-only guard",
    "unfenced heartbeat",
    "claim without state check",
    "lease outlives its attempt",
    "expiry ignores a cancel",
)
"""What the state machine meets within seconds, without knowing where to look."""
STEPS = 30
CAUGHT = (Exception, pytest.fail.Exception)


@pytest.fixture(autouse=True)
def _no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)


def test_every_planted_bug_has_its_scenario() -> None:
    assert CATCHES.keys() == PLANTED.keys()
    assert ONLY_ON.keys() <= PLANTED.keys()


@pytest.mark.parametrize(("settings", "name"), BOTH, indirect=["settings"])
def test_a_planted_bug_is_caught(engine: Engine, name: str) -> None:
    with planted(name, engine), pytest.raises(CAUGHT):
        CATCHES[name](engine)


@pytest.mark.parametrize(
    ("settings", "scenario"), PASSED, indirect=["settings"], ids=lambda one: getattr(one, "__name__", one)
)
def test_the_queue_passes(engine: Engine, scenario: Scenario) -> None:
    scenario(engine)


@pytest.mark.parametrize("name", FOUND_BY_CHANCE)
def test_the_state_machine_finds(name: str, sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fixed seed; nothing is made small, so that it takes seconds."""
    engine = open_database(sqlite_settings)
    monkeypatch.setattr(QueueMachine, "engine", engine, raising=False)
    fixed = settings(
        max_examples=100, stateful_step_count=STEPS, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate], report_multiple_bugs=False,
    )  # fmt: skip
    with planted(name, engine), pytest.raises(CAUGHT):
        run_state_machine_as_test(QueueMachine, settings=fixed, _min_steps=STEPS)
    engine.dispose()
