"""A lens job in MLflow: its curve by layer, what the logit lens scores beside it, its files; twice changes nothing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.database.schema import open_database
from orchestrator.settings import Settings
from tests.lens_shorthand import SHA256, begin_lens, lens_point, lens_result, queue_lens, take_lens
from worker.tracking.job_runs import Projection

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def settings(tmp_path: Path, empty_store: Path) -> Settings:
    home = tmp_path / "a home"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    return Settings(home=home)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = open_database(settings)
    yield engine
    engine.dispose()


def test_the_curve_of_a_lens_is_shown_by_layer_and_its_files_kept(engine: Engine, settings: Settings) -> None:
    from mlflow import MlflowClient

    job_id = queue_lens(engine, name="mine")
    lease = take_lens(engine).lease
    begin_lens(engine, lease)
    queue.record(engine, lease, [lens_point(1024, 0.5), lens_point(2048, 0.25), lens_point(4096, float("nan"))])
    queue.checkpointed(engine, lease, queue.CheckpointRef("at/2048", 2048, "00"))
    Projection(engine, settings).project(job_id)  # while it runs
    folder = settings.artifacts_folder / "lenses" / SHA256
    folder.mkdir(parents=True)
    (folder / "lens.safetensors").write_bytes(b"weights")
    queue.record(engine, lease, [lens_point(4096, 0.125)])
    queue.finish_lens(engine, lease, lens_result(uri=str(folder)))
    for _ in range(2):
        Projection(engine, settings).project(job_id)
    client = MlflowClient(settings.tracking)
    experiment = client.get_experiment_by_name("lenses")
    assert experiment is not None
    runs = {run.data.tags["orch.kind"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["attempt", "job"]
    run, of_attempt = runs["job"], runs["attempt"]
    assert (run.info.status, of_attempt.info.status) == ("FINISHED", "FINISHED")
    assert run.info.run_name == f"job {job_id}: lens mine of shipped:stdlib-gpt2"
    assert run.data.params["optimizer.lr"] == "0.001"
    kls = {one.step: one.value for one in client.get_metric_history(run.info.run_id, "kl.layer_0")}
    assert kls == {1024: 0.75, 2048: 0.375, 4096: 0.1875}
    final = run.data.metrics
    assert {name: final[name] for name in ("final/kl", "final/logit_lens_kl.layer_0", "final/tokens_seen")} == {
        "final/kl": 0.125, "final/logit_lens_kl.layer_0": 3.0, "final/tokens_seen": 4096.0,
    }  # fmt: skip
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"curve", "lens"}
