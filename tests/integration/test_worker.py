"""The whole walk without a broker: a supervisor, SQLite, two tiny jobs, MLflow."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from orchestrator.curves.point import Point
from orchestrator.database.models import CurvePoint
from orchestrator.settings import Settings
from tests.small_world import CONTEXT, WIDTH, World, make_subject, small_config, small_world
from worker.supervisor.supervisor import Supervisor, this_worker
from worker.tracking.shipper import Tracking

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("a subject"))


def work(world: World, *, tracking: Tracking | None = None) -> list[str]:
    said: list[str] = []
    worker = this_worker("one", pid=1, device="cpu")
    supervisor = Supervisor(
        world.settings, world.engine, worker=worker, threads=1, say=said.append,
        changed=tracking.changed if tracking else lambda _: None,
    )  # fmt: skip
    supervisor.run(until_empty=True)
    return said


def test_two_jobs_from_the_queue_to_mlflow(subject: Path, tmp_path: Path) -> None:
    with small_world(tmp_path / "home") as world:
        configs = [small_config(subject, max_tokens=8192, n_latents=n) for n in (32, 64)]
        jobs = world.enqueue(*configs)
        trouble: list[str] = []
        tracking = Tracking(world.engine, world.settings, say=trouble.append)
        said = work(world, tracking=tracking)
        assert tracking.close(60), trouble
        for job, config in zip(jobs, configs, strict=True):
            assert (world.job(job).state, world.job(job).attempt) == ("succeeded", 1), said
            assert (world.job(job).n_latents, world.job(job).d_model) == (config.sae.n_latents, WIDTH)
            check_curve(world, job, config.training.max_tokens)
            check_artifacts(Path(world.result(job).artifact_uri or ""), config.sae.n_latents)
            check_facts(world, job)
        fvu = [world.result(job).fvu or 1.0 for job in jobs]
        assert fvu[1] < fvu[0] < (world.result(jobs[0]).untrained_fvu or 0.0)
        check_tracking(world.settings, jobs)
        assert not list((world.settings.home / "artifacts").rglob("*.partial"))


def check_curve(world: World, job: int, max_tokens: int) -> None:
    columns = [getattr(CurvePoint, name) for name in Point._fields]
    curve = [Point(*row) for row in world.rows(select(*columns).filter_by(job_id=job).order_by("tokens_seen"))]
    assert curve[0].tokens_seen == 1024
    assert curve[-1].tokens_seen == max_tokens
    assert all(earlier.fvu > later.fvu for earlier, later in zip(curve[::4], curve[4::4], strict=False))
    assert all(point.flops_subject > 0 for point in curve)


def check_artifacts(folder: Path, n_latents: int | None) -> None:
    from worker.formats.native import load_final

    model, about = load_final(str(folder))
    assert tuple(model.W_dec.shape) == (n_latents, WIDTH)
    assert json.loads((folder / "config.json").read_text())["facts"]["subject"]["class"] == "GPT2LMHeadModel"
    assert about["tokens_seen"] == 8192


def check_facts(world: World, job: int) -> None:
    facts: dict[str, Any] = world.last_attempt(job).facts or {}
    assert facts["k_aux"] == WIDTH // 2
    assert facts["lr"] > 0
    assert (facts["device"], facts["threads"]) == ("cpu", 1)
    assert facts["tokens"]["n_tokens"] > 100 * CONTEXT
    assert facts["subject"]["hook"] == "transformer.h.1"
    assert {"python", "torch", "transformers", "orch"} <= set(facts["versions"])


def check_tracking(settings: Settings, jobs: list[int]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(settings.tracking)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = {int(r.data.tags["orch.job_id"]): r for r in runs if r.data.tags["orch.kind"] == "job"}
    assert sorted(parents) == jobs
    assert len(runs) == 2 * len(jobs)
    for run in parents.values():
        assert run.info.status == "FINISHED"
        assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"curve", "sae"}
        assert len(client.get_metric_history(run.info.run_id, "fvu")) > 5


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"subject": {"hook": "transformer.h.9"}}, "transformer.h.1"),
        ({"data": {"source": "/there/is/no/such.txt"}}, "/there/is/no/such.txt"),
    ],
    ids=["hook point", "text"],
)
def test_what_no_retry_can_mend_fails_at_once(
    subject: Path, tmp_path: Path, change: dict[str, dict[str, str]], says: str
) -> None:
    from orchestrator.config.validation import parse

    values = small_config(subject).model_dump(mode="json", exclude_unset=True)
    for part, fields in change.items():
        values[part] |= fields
        values[part].pop("layer", None)
    with small_world(tmp_path / "home") as world:
        (job,) = world.enqueue(parse(values))
        said = work(world)
        found = world.job(job)
        assert (found.state, found.attempt, found.failures) == ("failed", 1, 1)
        assert says in (found.reason or "") + str(world.last_attempt(job).error)
        assert threading.active_count() < 10, said
