"""SAEs trained and evaluated by real workers: the scores, what is shared, and what a killed process costs."""

import math
import re
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from orchestrator import queue, saes
from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.database.models import Attempt, Job, MeasuredFamily, ScoreRow
from orchestrator.storage.garbage import SHARED
from orchestrator.sweep.sweep import Sweep
from tests.small_world import World, make_subject, small_config, small_world

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
CHEAP = EvaluationPlan(metrics=("reconstruction", "downstream", "structure"))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("a subject"))


@pytest.fixture(scope="module")
def measured_home(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with two SAEs, measured as their sweep asks for, to be copied."""
    home = tmp_path_factory.mktemp("two") / "home"
    configs = tuple(small_config(subject, n_latents=n, max_tokens=4_096) for n in (16, 32))
    with small_world(home) as world:
        queue.enqueue(world.engine, Sweep("small", configs, evaluation=CHEAP))
        assert world.work("--until-empty").wait(200) == 0, world.said()
    return home.rename(home.with_name("kept"))  # where rows name files that are not there, a copy's own are taken


@pytest.fixture
def world(measured_home: Path, tmp_path: Path) -> Iterator[World]:
    with small_world(shutil.copytree(measured_home, tmp_path / "home", symlinks=True)) as world:
        yield world


@pytest.fixture
def changing_subject(subject: Path, tmp_path: Path) -> Iterator[Path]:
    """Return the subject, which is as it was again after the test."""
    kept = shutil.copytree(subject, tmp_path / "kept")
    yield subject
    shutil.copytree(kept, subject, dirs_exist_ok=True)


def scores(world: World, job_id: int) -> dict[tuple[str, str, str], float]:
    columns = select(ScoreRow.family, ScoreRow.metric, ScoreRow.variant, ScoreRow.value)
    rows = world.rows(columns.where(ScoreRow.job_id == job_id))
    return {(row.family, row.metric, row.variant): row.value for row in rows}


def has_measured(world: World, jobs: list[int], n_families: int) -> bool:
    return len(world.rows(select(MeasuredFamily.family).where(MeasuredFamily.job_id.in_(jobs)))) >= n_families


def asked_again(world: World, plan: EvaluationPlan, *sae_ids: int) -> list[int]:
    return [one.job_id or 0 for one in queue.evaluate(world.engine, plan, sae_ids, again=True)]


def check_processes(world: World, trained: int, measured: int, *, is_one: bool) -> None:
    trainer, process = (re.findall(rf"job {job}: .*?(\d+)$", world.said(), re.M)[0] for job in (trained, measured))
    assert (trainer == process) == is_one, world.said()
    training, measuring = (world.settings.log_file(job, 1).read_text() for job in (trained, measured))
    assert ("training from" in training, "evaluating on" in training) == (True, False)
    assert ("training from" in measuring, "evaluating on" in measuring) == (False, True)


def test_a_sweep_says_what_is_measured_and_the_trainer_measures_it(world: World) -> None:
    """The libraries and the model's classes are loaded once; whose log a line is in does not depend on that."""
    measured = [row.id for row in world.rows(select(Job.id).where(Job.kind == "evaluate").order_by(Job.id))]
    assert [world.job(job).state for job in (1, 2, *measured)] == ["succeeded"] * 4, world.said()
    for job, evaluation in zip((1, 2), measured, strict=True):
        check_processes(world, job, evaluation, is_one=True)
        found, result = scores(world, evaluation), world.result(job)
        assert found["reconstruction", "fvu", ""] == pytest.approx(result.fvu, rel=1e-4)
        assert found["reconstruction", "l0", ""] == pytest.approx(result.l0, rel=1e-4)
        assert abs(found["downstream", "identity", ""]) < 1e-4
        assert found["downstream", "kl", ""] > 0
        assert found["downstream", "ce_patched", ""] - found["downstream", "ce_clean", ""] == pytest.approx(
            found["downstream", "delta_ce", ""], abs=1e-6
        )
    assert "shared_with" not in str(world.last_attempt(measured[0]).facts)
    kept = list((world.settings.home / SHARED).iterdir())
    assert kept, "the clean pass is kept for the next evaluation"
    again = [one.job_id for one in queue.evaluate(world.engine, CHEAP, [1, 2])]
    assert again == measured, "what is measured is not queued again"


def test_an_sae_whose_files_are_gone_fails_alone_and_a_process_of_its_own_measures_the_same(world: World) -> None:
    by_trainer = scores(world, 4)
    shutil.rmtree(world.settings.home / SHARED)  # the clean pass of the trainer
    uri = world.result(1).artifact_uri or ""
    folder = Path(world.settings.artifact(uri))
    folder.rename(folder.with_name("moved"))
    Path(uri).parent.mkdir(parents=True)  # where it lay is at hand: only the SAE is not
    gone, there = asked_again(world, CHEAP, 1, 2)
    assert world.work("--until-empty").wait(120) == 0, world.said()
    assert (world.job(gone).state, world.job(there).state) == ("failed", "succeeded"), world.said()
    assert "the files of 1 are gone" in (world.job(gone).reason or "")
    check_processes(world, 2, there, is_one=False)
    assert scores(world, there) == by_trainer, "bit for bit"


def test_killed_again_and_again_every_family_is_stored_once(world: World) -> None:
    plan = EvaluationPlan(metrics=("reconstruction", "downstream", "structure", "ablation", "n2g"))
    jobs = asked_again(world, plan, *(sae.id for sae in saes.entries(world.engine)))
    for n_families in (1, 3):
        worker = world.work()
        world.wait(partial(has_measured, world, jobs, n_families))
        victim = psutil.Process(worker.pid)
        for process in (*victim.children(recursive=True), victim):
            process.kill()
        worker.wait()
    assert world.work("--until-empty").wait(200) == 0, world.said()
    for job in jobs:
        assert world.job(job).state == "succeeded", world.said()
        families = world.rows(select(MeasuredFamily.family, MeasuredFamily.state).where(MeasuredFamily.job_id == job))
        assert sorted(tuple(row) for row in families) == sorted((family, "measured") for family in plan.metrics)
        assert all(value is None or math.isfinite(value) for value in scores(world, job).values())
    assert any(world.job(job).attempt > 1 for job in jobs)


def test_a_worker_that_is_told_to_stop_hands_an_evaluation_back(world: World) -> None:
    (job,) = asked_again(world, CHEAP, 1)
    worker = world.work()
    world.wait(lambda: world.job(job).state == "running")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0, world.said()
    assert "writing a checkpoint" not in world.said(), "an evaluation has none"
    outcomes = [row.outcome for row in world.rows(select(Attempt.outcome).where(Attempt.job_id == job))]
    assert outcomes in (["preempted"], ["evaluated"]), outcomes
    assert world.work("--until-empty").wait(120) == 0, world.said()
    assert world.job(job).state == "succeeded"


def test_an_sae_is_not_measured_on_another_model_or_text_than_it_was_trained_on(
    changing_subject: Path, world: World
) -> None:
    text, weights = changing_subject / "text.txt", changing_subject / "model.safetensors"
    plan = EvaluationPlan(metrics=("reconstruction",))

    def measured(plan: EvaluationPlan) -> Job:
        (job,) = asked_again(world, plan, 1)
        assert world.work("--until-empty").wait(120) == 0, world.said()
        return world.job(job)

    text.write_text(text.read_text() + "\n\njudge my vow of black quartz")
    job = measured(plan)
    assert (job.state, job.failures) == ("failed", 1)
    assert "the text is not the one the SAE was trained on" in (job.reason or "")
    there = measured(plan.model_copy(update={"source": str(text)}))
    assert there.state == "succeeded", "a text that is asked for by name is another text"
    facts = world.last_attempt(there.id).facts or {}
    assert facts["subject"]["sha256"] == (world.last_attempt(1).facts or {})["subject"]["sha256"]

    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    other = measured(plan.model_copy(update={"source": str(text)}))
    assert other.state == "failed"
    assert "the model is not the one the SAE was trained on" in (other.reason or "")
