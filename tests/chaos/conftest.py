"""A small world for each test of the tier, and the curve of a run that nobody disturbs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_world import SYNTHETIC, World, small_config, small_world

STEPS_TO_KILL_IN = 4096
"""Long enough to be killed in the middle on a fast machine: some seconds."""


@pytest.fixture(scope="session")
def long_tokens() -> int:
    return 64 * STEPS_TO_KILL_IN


@pytest.fixture(scope="session")
def undisturbed(long_tokens: int, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[float, ...]]:
    """Return the curve of a run from end to end."""
    with small_world(tmp_path_factory.mktemp("undisturbed") / "home") as world:
        (job,) = world.enqueue(small_config(SYNTHETIC, max_tokens=long_tokens))
        assert world.work("--until-empty").wait(120) == 0, world.said()
        assert world.job(job).state == "succeeded"
        return world.curve(job)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_world(tmp_path / "home") as made:
        yield made
