"""The queue against a plain model of it, on SQLite and on PostgreSQL."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine

from tests.conformance.queue_machine import QueueMachine

EXAMPLES = {"sqlite": 40, "postgresql": 30}
STEPS = 30


@pytest.mark.timeout(900)  # it takes seconds; a failure takes minutes to be made small
def test_any_order_of_verbs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)  # the jitter of a pause
    monkeypatch.setattr(QueueMachine, "engine", engine, raising=False)
    quick = settings(
        max_examples=EXAMPLES[engine.name], stateful_step_count=STEPS, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(QueueMachine, settings=quick, _min_steps=STEPS)
