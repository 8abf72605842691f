"""`subject.dtype: auto`: what the first attempt settled stays, on whatever machine the job goes on, and afterwards."""

import uuid
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


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("subject"))


def config(subject: Path, dtype: str) -> JobConfig:
    values = small_config(subject, max_tokens=8_192).model_dump()
    return parse(values | {"subject": values["subject"] | {"dtype": dtype}})


def evaluation(world: World, of_job: int) -> EvaluationConfig:
    (row,) = world.rows(select(Job.config, Job.config_id).where(Job.kind == "evaluate", Job.sae_id == of_job))
    return read_evaluation(row.config, row.config_id)


def test_a_job_goes_on_in_the_precision_that_it_began_in_and_is_measured_in_it(subject: Path, tmp_path: Path) -> None:
    configs = config(subject, "auto"), config(subject, "bfloat16"), config(subject, "float32")
    with small_world(tmp_path / "home") as world:
        sweep = Sweep("s", configs, evaluation=EvaluationPlan(metrics=("reconstruction",)))
        began, low, full = (job for job in queue.enqueue(world.engine, sweep).job_ids if job is not None)
        # On another machine, whose bfloat16 products are faster; this one may be of the other kind.
        claim = queue.claim(world.engine, WORKER, token=uuid.uuid4().hex, lease_seconds=60.0)
        assert claim is not None
        assert claim.lease.job_id == began
        queue.begin(world.engine, claim.lease, {"subject_dtype": "bfloat16"}, 0)
        queue.release(world.engine, claim.lease)
        assert world.work("--until-empty").wait(200) == 0, world.said()
        assert (world.last_attempt(began).facts or {})["subject_dtype"] == "bfloat16"
        assert "subject_dtype" not in (world.last_attempt(low).facts or {}), "nothing was left open"
        assert world.curve(began) == world.curve(low) != world.curve(full)
        assert [evaluation(world, job).subject.dtype for job in (began, low, full)] == ["bfloat16"] * 2 + ["float32"]
        with orch.open(home=world.settings.home) as study:
            assert [study.subject(job).view.precision for job in (began, full)] == ["bfloat16", "float32"]


def test_a_fresh_job_is_trained_as_its_machine_is_faster_and_says_so(subject: Path, tmp_path: Path) -> None:
    with small_world(tmp_path / "home") as world:
        (job,) = world.enqueue(config(subject, "auto"))
        (other,) = world.enqueue(config(subject, fast_dtype("cpu")), name="named")
        assert world.work("--until-empty").wait(120) == 0, world.said()
        assert (world.last_attempt(job).facts or {})["subject_dtype"] == fast_dtype("cpu")
        assert world.curve(job) == world.curve(other)
        shown = CliRunner().invoke(cli, ["show", str(job)], env=world.environ)
        assert f"subject_dtype {fast_dtype('cpu')}" in " ".join(shown.output.split()), shown.output
