"""Lenses trained by real workers: below the logit lens, the same when killed and resumed, and what is refused."""

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from orchestrator import lenses, queue, results
from orchestrator.config.lens.reading import parse_lens
from orchestrator.config.lens.training import LensConfig
from orchestrator.curves.lens_curve import LensPoint
from orchestrator.database.models import LensPointRow
from orchestrator.lenses import LensEntry
from tests.small_world import CONTEXT, World, make_subject, small_world
from worker.lens.tuned_lens import TunedLens

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
LONG = 131_072


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("a subject"))


def config(subject: Path, max_tokens: int, **parts: dict[str, Any]) -> LensConfig:
    training = {
        "batch_tokens": 256, "heldout_tokens": 512, "first_point_tokens": 1_024, "max_tokens": max_tokens,
    }  # fmt: skip
    data = {"source": str(subject / "text.txt"), "context_length": CONTEXT}
    own = {"subject": {"model": str(subject)}, "data": data, "training": training, "stop": {"rule": "max_tokens"}}
    return parse_lens(own | parts)


def asked(world: World, of: LensConfig, *, again: bool = False) -> int:
    job_id = queue.train_lens(world.engine, of, again=again).job_id
    assert job_id is not None
    return job_id


def trained(world: World, of: LensConfig) -> LensEntry:
    job_id = asked(world, of)
    assert world.work("--until-empty").wait(180) == 0, world.said()
    assert world.job(job_id).state == "succeeded", world.said()
    return lenses.named(world.engine, str(job_id))


def curve(world: World, job_id: int) -> list[tuple[Any, ...]]:
    """Return the stored curve, every bit of it, but for how long it took."""
    names = [one.name for one in fields(LensPoint) if one.name != "wall_seconds"]
    return [tuple(getattr(point, name) for name in names) for point in lenses.curve(world.engine, job_id)]


def processes(world: World) -> list[psutil.Process]:
    children = psutil.Process(world.workers[-1].pid).children()
    return [one for one in children if "worker.lens_training" in one.cmdline()]


def is_in_training(world: World, job_id: int, attempt: int) -> bool:
    measured = world.rows(select(LensPointRow.tokens_seen).filter_by(job_id=job_id, attempt=attempt))
    ready = bool(measured) and world.has_checkpoint(job_id, attempt)
    job = world.job(job_id)
    assert job.attempt < attempt or job.state == "running" or not ready, "too late: the job is no longer running"
    return ready and job.attempt == attempt


@pytest.fixture(scope="module")
def undisturbed(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield a world with one lens, trained without a disturbance."""
    with small_world(tmp_path_factory.mktemp("undisturbed") / "home") as world:
        trained(world, config(subject, LONG))
        yield world


@pytest.fixture(scope="module")
def stopped_home(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with that lens job, killed and, as it went on, told to stop, to be copied."""
    home = tmp_path_factory.mktemp("stopped") / "home"
    with small_world(home) as world:
        job_id = asked(world, config(subject, LONG))
        worker = world.work()
        world.wait(lambda: is_in_training(world, job_id, 1))
        processes(world)[0].kill()
        world.wait(lambda: is_in_training(world, job_id, 2))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(90) == 0, world.said()
        assert "writing a checkpoint" in world.said()
    return home.rename(home.with_name("kept"))


@pytest.fixture
def stopped(stopped_home: Path, tmp_path: Path) -> Iterator[World]:
    with small_world(shutil.copytree(stopped_home, tmp_path / "home", symlinks=True)) as world:
        yield world


def test_it_is_closer_to_the_model_than_the_logit_lens_at_every_layer_but_the_last(
    subject: Path, undisturbed: World
) -> None:
    (found,) = lenses.entries(undisturbed.engine)
    assert found.kls is not None
    assert found.logit_lens_kls is not None
    pairs = list(zip(found.kls, found.logit_lens_kls, strict=True))
    assert all(kl is not None and kl < logit for kl, logit in pairs[:-1]), pairs
    assert pairs[-1] == (0.0, 0.0)
    assert (found.outcome, found.n_layers, found.d_model, found.tokens_seen) == ("max_tokens", 2, 32, LONG)
    lens = TunedLens.read(Path(undisturbed.settings.artifact(found.uri or "")), sha256=found.sha256)
    assert found.conditions == [lens.condition(0), 1.0]
    assert (lens.facts.fingerprint, lens.facts.model) == (found.fingerprint, str(subject))
    points = lenses.curve(undisturbed.engine, found.job_id or 0)
    assert (points[-1].kl, points[-1].kls) == (found.kl, found.kls)
    assert points[0].kl > points[-1].kl
    assert points[-1].loss == pytest.approx(points[-1].kl, rel=0.2), "training text is no other"


def test_killed_and_told_to_stop_it_comes_to_the_same_lens_bit_for_bit(undisturbed: World, stopped: World) -> None:
    assert stopped.work("--until-empty").wait(180) == 0, stopped.said()
    attempts = stopped.attempts(1)
    assert [outcome for outcome, _ in attempts] == ["crashed", "preempted", "max_tokens"], stopped.said()
    assert all(tokens for _, tokens in attempts[1:]), "each goes on from a checkpoint"
    assert curve(stopped, 1) == curve(undisturbed, 1)
    assert lenses.named(stopped.engine, "1").sha256 == lenses.named(undisturbed.engine, "1").sha256


def test_what_no_attempt_can_train_fails_once_and_says_why(subject: Path, tmp_path: Path) -> None:
    import transformers

    made: Any = transformers
    single = make_subject(tmp_path / "one block")
    described = made.GPT2Config.from_pretrained(single)
    described.n_layer = 1
    made.GPT2LMHeadModel(described).save_pretrained(single)
    other = make_subject(tmp_path / "not finite")
    model = made.GPT2LMHeadModel.from_pretrained(other)
    model.transformer.ln_f.weight.data.fill_(float("inf"))
    model.save_pretrained(other)
    with small_world(tmp_path / "home") as world:
        jobs = [asked(world, config(folder, LONG)) for folder in (single, other)]
        assert world.work("--until-empty").wait(120) == 0, world.said()
        assert [(world.job(job).state, world.job(job).attempt) for job in jobs] == [("failed", 1)] * 2, world.said()
        assert "has 1 block" in (world.job(jobs[0]).reason or "")
        assert "are not finite" in (world.job(jobs[1]).reason or "")


def test_it_does_not_go_on_with_another_text(subject: Path, stopped: World) -> None:
    text = subject / "text.txt"
    before = text.read_text()
    text.write_text(before + "\n\njudge my vow of black quartz")
    try:
        assert stopped.work("--until-empty").wait(120) == 0, stopped.said()
    finally:
        text.write_text(before)
    assert stopped.job(1).state == "failed"
    assert "the text is not the one this job began with" in (stopped.job(1).reason or "")


def test_a_rate_far_too_large_diverges_and_leaves_no_lens(subject: Path, tmp_path: Path) -> None:
    with small_world(tmp_path / "home") as world:
        found = trained(world, config(subject, LONG, optimizer={"lr": 100.0}))
        assert (found.outcome, found.sha256, found.uri) == ("diverged", None, None)
        (row,) = results.jobs(world.engine, kind="lens")
        assert row.tokens_seen < LONG
        assert json.loads(json.dumps(found.kls)) == found.kls
