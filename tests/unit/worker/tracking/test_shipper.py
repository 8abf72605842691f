"""MLflow as a projection: what it shows, that doing it twice changes nothing, and that nobody waits for it."""

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator import queue, saes
from orchestrator.config.validation import parse
from orchestrator.curves.point import Point
from orchestrator.database.schema import open_database
from orchestrator.errors import NotFound
from orchestrator.settings import Settings
from orchestrator.sweep.sweep import Sweep
from tests import evaluation_shorthand as shorthand
from worker.tracking.shipper import Tracking, sync

# MLflow uses what its own libraries call old, and leaves connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TOKENS = (1024, 2048, 4096)
FACTS = {"n_latents": 64, "d_model": 32, "lr": 1e-3, "git_commit": "a" * 40, "subject": {"class": "GPT2LMHeadModel"}}


@pytest.fixture
def settings(tmp_path: Path, empty_store: Path) -> Settings:
    home = tmp_path / "a home"
    home.mkdir()
    for name in ("mlflow.db", "other.db"):
        shutil.copy(empty_store, home / name)
    return Settings(home=home)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = open_database(settings)
    yield engine
    engine.dispose()


def point(tokens: int, fvu: float) -> Point:
    return Point(tokens, fvu, fvu, 0.5, float("nan"), 0.0, 8.0, 0.1, tokens / 1000, 1e9, 1e9, 1e9)


def claimed(engine: Engine) -> queue.Lease:
    config = parse({"subject": {"model": "https://me:secret@host/model"}, "sae": {"n_latents": 64, "k": 8}})
    queue.enqueue(engine, Sweep("widths / k", (config,), labels={"project": "laws"}))
    claim = queue.claim(engine, queue.Worker("one", "here", 1, "cpu"), token=str(time.monotonic()), lease_seconds=90)
    assert claim
    return claim.lease


def train(engine: Engine, lease: queue.Lease) -> None:
    queue.begin(engine, lease, FACTS, 0)
    queue.record(engine, lease, [point(tokens, 1000 / tokens) for tokens in TOKENS])


def finish(engine: Engine, lease: queue.Lease, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "sae.safetensors").write_bytes(b"weights")
    result = queue.Result("converged", 4096, 1.1, str(folder), 4.0, 1e9, 1e9, 1e9)
    queue.finish(engine, lease, result)


def ship(engine: Engine, settings: Settings, *job_ids: int) -> list[str]:
    said: list[str] = []
    tracking = Tracking(engine, settings, say=said.append)
    for job_id in job_ids:
        tracking.changed(job_id)
    tracking.close(60)
    return said


def runs(settings: Settings) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(settings.tracking)
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    return {run.data.tags["orch.kind"]: run for run in client.search_runs([experiment.experiment_id])}


def steps(settings: Settings, run: Any) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    return [(m.step, m.value) for m in MlflowClient(settings.tracking).get_metric_history(run.info.run_id, "fvu")]


def test_a_sweep_is_an_experiment_a_job_a_run_an_attempt_a_run_inside(engine: Engine, settings: Settings) -> None:
    lease = claimed(engine)
    train(engine, lease)
    assert ship(engine, settings, lease.job_id) == []
    job, attempt = (runs(settings)[kind] for kind in ("job", "attempt"))
    assert attempt.data.tags["mlflow.parentRunId"] == job.info.run_id
    assert attempt.data.tags["mlflow.source.git.commit"] == "a" * 40
    assert attempt.data.params["subject.class"] == "GPT2LMHeadModel"
    assert (job.data.tags["orch.sweep"], job.data.tags["orch.label.project"]) == ("widths / k", "laws")
    assert job.data.params["sae.k"] == "8"
    assert "secret" not in str(job.data.params)
    assert steps(settings, attempt) == [(tokens, 1000 / tokens) for tokens in TOKENS]
    assert steps(settings, job) == [], "points without a checkpoint behind them may be measured again"

    finish(engine, lease, settings.home / "artifacts" / "final")
    assert ship(engine, settings, lease.job_id) == []
    job = runs(settings)["job"]
    assert (job.info.status, job.data.metrics["final/fvu"]) == ("FINISHED", 1000 / 4096)
    assert steps(settings, job) == [(tokens, 1000 / tokens) for tokens in TOKENS]
    stored = settings.home / "mlartifacts"
    assert {path.name for path in stored.rglob("*.*")} >= {"sae.safetensors", "curve.png"}
    assert (next(stored.rglob("curve.png"))).read_bytes().startswith(b"\x89PNG")


def test_sync_rebuilds_a_lost_store_and_changes_nothing_twice(engine: Engine, settings: Settings) -> None:
    lease = claimed(engine)
    train(engine, lease)
    finish(engine, lease, settings.home / "artifacts" / "final")
    assert ship(engine, settings, lease.job_id) == []
    first = runs(settings)

    assert sync(engine, settings, "widths / k") == 1
    again = runs(settings)
    assert {kind: run.info.run_id for kind, run in again.items()} == {k: run.info.run_id for k, run in first.items()}
    assert len(steps(settings, again["job"])) == len(TOKENS)

    other = replace(settings, tracking_url=f"sqlite:///{settings.home}/other.db")
    assert sync(engine, other, "widths / k") == 1
    assert steps(other, runs(other)["job"]) == steps(settings, first["job"])
    with pytest.raises(NotFound, match="no sweep 'width'"):
        sync(engine, settings, "width")


def test_f30_a_server_that_is_away_delays_nobody(engine: Engine, settings: Settings) -> None:
    away = replace(settings, tracking_url="http://127.0.0.1:1")
    lease = claimed(engine)
    train(engine, lease)
    said: list[str] = []
    tracking = Tracking(engine, away, say=said.append)
    started = time.monotonic()
    for _ in range(1000):
        tracking.changed(lease.job_id)
    assert time.monotonic() - started < 0.5
    assert not tracking.close(30)
    assert time.monotonic() - started < 30
    assert any("training goes on" in line for line in said)
    assert any("sync" in line for line in said)


def test_a_run_is_named_by_what_was_swept_and_says_what_auto_came_to(engine: Engine, settings: Settings) -> None:
    sizes = {"n_latents": 64, "k": 8}
    rates = ("auto", 0.002)
    configs = tuple(parse({"sae": sizes, "optimizer": {"lr": rate}}) for rate in rates)
    queue.enqueue(engine, Sweep("rates", configs))
    claim = queue.claim(engine, queue.Worker("one", "here", 1, "cpu"), token="t", lease_seconds=90)
    assert claim
    train(engine, claim.lease)
    assert ship(engine, settings, 1, 2) == []
    from mlflow import MlflowClient

    client = MlflowClient(settings.tracking)
    experiment = client.get_experiment_by_name("rates")
    assert experiment
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert found.keys() == {"job 1: n=64 k=8 lr=auto", "job 1 attempt 1", "job 2: n=64 k=8 lr=0.002"}
    first = found["job 1: n=64 k=8 lr=auto"].data.params
    assert (first["optimizer.lr"], first["resolved.lr"]) == ("auto", "0.001")


def test_a_job_run_that_was_deleted_is_rebuilt_with_its_attempts_under_it(engine: Engine, settings: Settings) -> None:
    from mlflow import MlflowClient

    lease = claimed(engine)
    train(engine, lease)
    finish(engine, lease, settings.home / "artifacts" / "final")
    assert ship(engine, settings, lease.job_id) == []
    before = runs(settings)
    MlflowClient(settings.tracking).delete_run(before["job"].info.run_id)
    assert sync(engine, settings, "widths / k") == 1
    after = runs(settings)
    assert after["job"].info.run_id != before["job"].info.run_id
    assert steps(settings, after["job"]) == [(tokens, 1000 / tokens) for tokens in TOKENS]
    assert after["attempt"].info.run_id == before["attempt"].info.run_id
    assert after["attempt"].data.tags["mlflow.parentRunId"] == after["job"].info.run_id


def test_numbers_of_one_point_stand_apart_from_the_curve(engine: Engine, settings: Settings) -> None:
    lease = claimed(engine)
    train(engine, lease)
    finish(engine, lease, settings.home / "artifacts" / "final")
    assert ship(engine, settings, lease.job_id) == []
    from mlflow import MlflowClient

    client, job = MlflowClient(settings.tracking), runs(settings)["job"]
    for name in job.data.metrics:
        n_points = len(client.get_metric_history(job.info.run_id, name))
        assert (n_points == 1) == name.startswith("final/"), name


def test_scores_stand_beside_the_config_of_the_job_that_trained_the_sae(engine: Engine, settings: Settings) -> None:
    lease = claimed(engine)
    train(engine, lease)
    finish(engine, lease, settings.home / "artifacts" / "final")
    (sae_id,) = [entry.id for entry in saes.entries(engine)]
    (evaluation,) = shorthand.evaluate(engine, sae_id)
    taken = shorthand.take(engine).lease
    measured = [shorthand.score("delta_ce", 0.25), shorthand.score("delta_ce", 0.75, variant="k=2, first")]
    shorthand.record(engine, taken, "downstream", *measured, shorthand.score("identity", math.nan))
    for _ in range(2):  # before the job's own run is there, and once more
        assert ship(engine, settings, evaluation) == []
        found = runs(settings)
        assert set(found) == {"job", "attempt"}, "the evaluation has no run of its own"
        values = found["job"].data.metrics
        assert {name: value for name, value in values.items() if name.startswith("downstream")} == {
            "downstream/delta_ce": 0.25, "downstream/delta_ce k_2_ first": 0.75,
        }  # fmt: skip
        assert found["job"].data.params["sae.k"] == "8"
        assert steps(settings, found["job"])[-1][0] == 4096
    assert found["job"].info.status == "FINISHED"


def test_scores_of_an_sae_that_was_brought_in_have_a_run_of_their_own(engine: Engine, settings: Settings) -> None:
    (evaluation,) = shorthand.evaluate(engine, shorthand.imported(engine, "scope"))
    assert ship(engine, settings, evaluation) == []
    taken = shorthand.take(engine).lease
    shorthand.record(engine, taken, "reconstruction", shorthand.score("fvu", 0.5))
    queue.finish_evaluation(engine, taken, 1.0)
    assert ship(engine, settings, evaluation, evaluation) == []
    (run,) = runs(settings).values()
    assert (run.info.run_name, run.info.status) == ("sae:scope", "FINISHED")
    assert (run.data.metrics, run.data.params["selection"]) == ({"reconstruction/fvu": 0.5}, "jumprelu")
