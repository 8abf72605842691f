"""A synthetic subject from a sweep file to MLflow; killed and in company it is in chaos/test_shared_trainer.py."""

import json
import os
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from orchestrator import results
from orchestrator.cli.main import run
from tests.small_world import World, small_world
from worker.tracking.shipper import Tracking

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WORD = "synthetic:planted?d_model=32&latents=128&k=3&exponent=1.0&noise=0.02&seed=0"
TRAINING = {
    "batch_tokens": 64, "shuffle_tokens": 1024, "heldout_tokens": 2048, "max_tokens": 16_384,
    "first_point_tokens": 1024, "dead_after_tokens": 8192,
}  # fmt: skip
SWEEP = {
    "version": 1,
    "name": "planted",
    "overrides": {
        "subject.model": "synthetic:planted?d_model=32&latents=128&k=3&noise=0.02", "sae.k": 3, "optimizer.ema": 0.9,
        "stop.rule": "max_tokens", **{f"training.{key}": value for key, value in TRAINING.items()},
    },
    "sweep": [{"grid": {"sae.n_latents": [32, 128]}}],
}  # fmt: skip


def orch(world: World, *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; return its exit status, and what it says on both streams."""
    with patch.dict(os.environ, world.environ), redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        code = run(arguments)
    return code, out.getvalue(), err.getvalue()


def said(world: World, *arguments: str) -> str:
    code, out, err = orch(world, *arguments)
    assert code == 0, err
    return out


def test_from_a_sweep_file_to_mlflow(tmp_path: Path) -> None:
    file = tmp_path / "planted.yaml"
    file.write_text(json.dumps(SWEEP))
    with small_world(tmp_path / "home") as world:
        planned = json.loads(said(world, "enqueue", str(file), "--dry-run", "-o", "json"))["items"]
        assert [job["config"]["subject"]["model"] for job in planned] == [WORD] * 2
        assert all(job["flops_executed"] > 0 for job in planned)
        assert "added 2" in said(world, "enqueue", str(file))
        assert "read by 1 other queued job" in said(world, "explain", "1")
        assert world.work("--until-empty").wait(120) == 0, world.said()
        check_results(world)
        assert "succeeded" in said(world, "show", "1")
        assert "used its whole token budget" in said(world, "explain", "2")
        check_tracking(world)
        assert "already there 2" in said(world, "enqueue", str(file))


def check_results(world: World) -> None:
    assert [row.data for row in results.measured(world.engine, ["planted"])] == ["", ""], "there is no text"
    for job, other in ((1, 2), (2, 1)):
        assert world.job(job).state == "succeeded", world.said()
        assert world.job(job).d_model == 32
        facts: dict[str, Any] = world.last_attempt(job).facts or {}
        assert facts["subject"]["class"] == "Planted"
        assert facts["flops_subject_per_token"] == 0
        assert (facts["shared_with"], facts["heldout_tokens"]) == ([other], 2048)
        assert "tokens" not in facts
        assert all(0.0 in point for point in world.curve(job))  # flops_subject
    fvu = [world.result(job).fvu or 1.0 for job in (1, 2)]
    assert fvu[1] < fvu[0] < (world.result(1).untrained_fvu or 0.0)
    assert not (world.settings.home / "tokens").exists()


def check_tracking(world: World) -> None:
    from mlflow import MlflowClient

    trouble: list[str] = []
    tracking = Tracking(world.engine, world.settings, say=trouble.append)
    for job in (1, 2):
        tracking.changed(job)
    assert tracking.close(60), trouble
    client = MlflowClient(world.settings.tracking)
    experiment = client.get_experiment_by_name("planted")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`orch.kind` = 'job'")
    assert sorted(run.data.tags["orch.job_id"] for run in runs) == ["1", "2"]
    for one in runs:
        assert one.data.params["subject.model"] == WORD
        assert len(client.get_metric_history(one.info.run_id, "fvu")) > 5


def test_what_does_not_apply_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "planted.yaml"
    file.write_text("name: planted\nsubject.model: synthetic:gaussian\ndata.activations: cache\n")
    with small_world(tmp_path / "home") as world:
        code, _, error = orch(world, "enqueue", str(file), "--dry-run")
        assert code == 2
        assert f"{file}:3:19: data.activations means nothing to synthetic:gaussian" in error
        other = ("~data.activations", "subject.model=synthetic:gaussian?k=2")
        code, _, error = orch(world, "enqueue", str(file), "--dry-run", *other)
        assert code == 2
        assert "has no parameter 'k'; there are: d_model, seed" in error
