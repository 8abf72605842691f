"""`subject.dtype: auto`: what the first attempt settled stays, on whatever machine the job goes on, and afterwards."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select

import orch
from orchestrator import queue
from orchestrator.cli.main import cli
from orchestrator.config.evaluation.evaluation import EvaluationConfig, EvaluationPlan
from orchestrator.config.evaluation.reading import read_evaluation
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.database.models import Job
from orchestrator.sweep.sweep import Sweep
from tests.queue_shorthand import WORKER
from tests.small_world import World, make_subject, small_config, small_world
from worker.accelerator import fast_dtype

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
BEGAN, LOW, FULL = 1, 2, 3


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("subject"))


def config(subject: Path, dtype: str) -> JobConfig:
    values = small_config(subject, max_tokens=8_192).model_dump()
    return parse(values | {"subject": values["subject"] | {"dtype": dtype}})


def evaluation(world: World, of_job: int) -> EvaluationConfig:
    (row,) = world.rows(select(Job.config, Job.config_id).where(Job.kind == "evaluate", Job.sae_id == of_job))
    return read_evaluation(row.config, row.config_id)


@pytest.fixture(scope="module")
def world(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield a world with a job that was begun elsewhere, one that names its precision, and one in another."""
    configs = config(subject, "auto"), config(subject, "bfloat16"), config(subject, "float32")
    with small_world(tmp_path_factory.mktemp("world") / "home") as world:
        sweep = Sweep("s", configs, evaluation=EvaluationPlan(metrics=("reconstruction",)))
        assert [*queue.enqueue(world.engine, sweep).job_ids] == [BEGAN, LOW, FULL]
        # On another machine, whose bfloat16 products are faster; this one may be of the other kind.
        claim = queue.claim(world.engine, WORKER, token=uuid.uuid4().hex, lease_seconds=60.0)
        assert claim is not None
        assert claim.lease.job_id == BEGAN
        queue.begin(world.engine, claim.lease, {"subject_dtype": "bfloat16"}, 0)
        queue.release(world.engine, claim.lease)
        assert world.work("--until-empty").wait(200) == 0, world.said()
        yield world


def test_a_job_goes_on_in_the_precision_that_it_began_in_and_is_measured_in_it(world: World) -> None:
    assert (world.last_attempt(BEGAN).facts or {})["subject_dtype"] == "bfloat16"
    assert "subject_dtype" not in (world.last_attempt(LOW).facts or {}), "nothing was left open"
    assert world.curve(BEGAN) == world.curve(LOW) != world.curve(FULL)
    assert [evaluation(world, job).subject.dtype for job in (BEGAN, LOW, FULL)] == ["bfloat16"] * 2 + ["float32"]
    with orch.open(home=world.settings.home) as study:
        assert [study.subject(job).view.precision for job in (BEGAN, FULL)] == ["bfloat16", "float32"]


def test_a_fresh_job_is_trained_as_its_machine_is_faster_and_says_so(subject: Path, world: World) -> None:
    (job,) = world.enqueue(config(subject, "auto"), name="fresh")
    assert world.work("--until-empty").wait(120) == 0, world.said()
    assert (world.last_attempt(job).facts or {})["subject_dtype"] == fast_dtype("cpu")
    assert world.curve(job) == world.curve({"bfloat16": LOW, "float32": FULL}[fast_dtype("cpu")])
    shown = CliRunner().invoke(cli, ["show", str(job)], env=world.environ)
    assert f"subject_dtype {fast_dtype('cpu')}" in " ".join(shown.output.split()), shown.output
