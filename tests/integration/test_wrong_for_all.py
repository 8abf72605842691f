"""A config that cannot be trained fails with all that wait for the same reason, at one trainer start; others go on."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator import queue
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.database.models import Job
from tests.small_world import World, make_subject, small_config, small_world


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("a subject"))


def varied(config: JobConfig, **values: Any) -> JobConfig:
    """Return a config with other values: `subject__layer=9`."""
    parts = config.model_dump(mode="json")
    for key, value in values.items():
        part, _, name = key.partition("__")
        parts[part][name] = value
    return parse(parts)


def train(world: World) -> None:
    assert world.work("--until-empty").wait(240) == 0, world.said()


def test_a_wrong_place_fails_all_that_read_there(subject: Path, tmp_path: Path) -> None:
    with small_world(tmp_path / "home", jobs_per_trainer=1) as world:
        good = small_config(subject, max_tokens=2048)
        wrong = [varied(good, subject__layer=9, training__seed=seed) for seed in range(4)]
        (fine, first, *others, elsewhere) = world.enqueue(
            good, *wrong, varied(good, subject__layer=9, data__seed=1, training__seed=9)
        )
        train(world)
        assert world.job(fine).state == "succeeded"
        assert "subject.layer = 9, and" in (world.job(first).reason or "")
        for job in others:
            found: Job = world.job(job)
            assert (found.state, found.attempt) == ("failed", 0), "no trainer was started for it"
            assert (found.reason or "").startswith(f"as job {first}: subject.layer = 9, and")
        assert (world.job(elsewhere).state, world.job(elsewhere).attempt) == ("failed", 1), "another stream"
        queue.retry(world.engine, others)
        train(world)
        assert [world.job(job).attempt for job in others] == [1, 0, 0], "one is tried anew, and the others with it"


def test_wrong_places_leave_their_companions(subject: Path, tmp_path: Path) -> None:
    """In one trainer: whatever the first job names, those of other places are trained."""
    with small_world(tmp_path / "home") as world:
        good = small_config(subject, max_tokens=2048)
        wrong, right, misspelt = world.enqueue(
            varied(good, subject__layer=9), good, varied(good, subject__layer=None, subject__hook="transformer.hh")
        )
        train(world)
        assert [world.job(job).state for job in (wrong, right, misspelt)] == ["failed", "succeeded", "failed"]
        assert "no module 'transformer.hh'" in (world.job(misspelt).reason or "")


WRONG_TEXTS: dict[str, dict[str, Any]] = {
    "context_length = 64: the model reads 32 at most": {"data__context_length": 64},
    "no BOS token": {"data__prepend_bos": True},
    "no column 'body'": {"data__text_column": "body"},
    "too few for 50000 held-out tokens": {"training__heldout_tokens": 50_000},
}


def test_a_wrong_text_fails_all_that_read_it(subject: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(f'{{"text": "{line}"}}' for line in (subject / "text.txt").read_text().splitlines()))
    with small_world(tmp_path / "home", jobs_per_trainer=1) as world:
        base = varied(small_config(subject, max_tokens=2048), data__source=str(rows))
        alike = {
            said: world.enqueue(*(varied(base, training__seed=seed, **values) for seed in range(3)), name=said)
            for said, values in WRONG_TEXTS.items()
        }
        train(world)
        for said, jobs in alike.items():
            assert [world.job(job).state for job in jobs] == ["failed"] * 3
            assert all(said in (world.job(job).reason or "") for job in jobs)
            assert [world.job(job).attempt for job in jobs] == [1, 0, 0]
