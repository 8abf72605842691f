"""`orch worker --devices cpu+cpu`: one job on two processes, from the queue to the checkpoint and back to one."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from orchestrator.config.validation import parse
from orchestrator.database.models import Attempt
from tests.small_world import SYNTHETIC, World, small_config, small_world, trainers

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PLANTED = Path("synthetic:planted?d_model=32&latents=128&k=3&noise=0.02")


def work(world: World, device: str | None, *arguments: str) -> subprocess.Popen[bytes]:
    return world.start(*(["--device", device] if device else []), "--threads", "1", *arguments)


def check_alike(ours: list[tuple[float, ...]], alone: list[tuple[float, ...]]) -> None:
    assert len(ours) == len(alone) > 10
    for one, other in zip(ours, alone, strict=True):
        assert [value is None for value in one] == [value is None for value in other]
        assert [value or 0.0 for value in one] == pytest.approx([value or 0.0 for value in other], rel=2e-3, abs=2e-3)


def test_begun_on_two_processes_ended_on_one_the_curve_is_that_of_one(tmp_path: Path) -> None:
    config = small_config(PLANTED, max_tokens=32_768, n_latents=65)  # 32 + 33 latents
    with small_world(tmp_path / "alone") as world:
        (job,) = world.enqueue(config)
        assert work(world, "cpu", "--until-empty").wait(120) == 0, world.said()
        alone, fvu = world.curve(job), world.result(job).fvu
    with small_world(tmp_path / "together") as world:
        (job,) = world.enqueue(config)
        worker = work(world, "cpu+cpu")
        world.wait(lambda: world.is_in_training(job, 1))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0, world.said()
        assert (world.last_attempt(job).facts or {})["device"] == "cpu+cpu"
        assert work(world, "cpu", "--until-empty").wait(120) == 0, world.said()
        (_, first), (outcome, second) = world.attempts(job)
        assert first == 0 < (second or 0) < 32_768
        assert outcome == "max_tokens", world.attempts(job)
        check_alike(world.curve(job), alone)
        assert world.result(job).fvu == pytest.approx(fvu, rel=1e-3)
        check_final(Path(world.result(job).artifact_uri or ""))


def check_final(folder: Path) -> None:
    from worker.formats.native import load_final

    model, about = load_final(str(folder))
    assert model.n_latents == about["n_latents"] == 65
    assert model.W_dec.norm(dim=1).sub(1).abs().max() < 1e-5


def test_a_killed_rank_process_costs_one_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with small_world(tmp_path / "home") as world:
        (job,) = world.enqueue(small_config(SYNTHETIC, max_tokens=131_072), max_failures=3)
        worker = work(world, "cpu+cpu")
        world.wait(lambda: world.is_in_training(job, 1))
        (trainer,) = trainers(worker)
        (rank,) = [p for p in trainer.children() if "worker.trainer.rank_processes" in " ".join(p.cmdline())]
        rank.kill()
        world.wait(lambda: world.attempts(job)[0][0] is not None)
        psutil.wait_procs([trainer], timeout=10)
        assert not trainer.is_running()
        assert world.attempts(job)[0][0] == "failed"
        error = str(world.one(Attempt, job_id=job, attempt=1).error)
        assert "on another device is gone" in error or "the process on cpu ended" in error
        world.wait(lambda: world.is_in_training(job, 2))
        assert (world.attempts(job)[1][1] or 0) > 0  # from the checkpoint on
        assert not list(tmp_path.glob("orch-ranks-*"))


def is_of(process: psutil.Process, world: World) -> bool:
    """Say whether a process works for a world."""
    environ = process.info["environ"] or {}
    return (
        "worker" in " ".join(process.info["cmdline"] or []) and environ.get("ORCH_HOME") == world.environ["ORCH_HOME"]
    )


def test_what_cannot_be_divided_is_trained_on_the_first_device(tmp_path: Path) -> None:
    """Which worker claims a job must not decide what becomes of it."""
    values = small_config(SYNTHETIC, max_tokens=4096).model_dump(mode="json", exclude_unset=True)
    saes = ({"activation": "relu"}, {"n_latents": 1, "k": 1})
    with small_world(tmp_path / "home") as world:
        jobs = world.enqueue(*(parse(values | {"sae": values["sae"] | sae}) for sae in saes))
        assert work(world, "cpu+cpu", "--until-empty").wait(120) == 0, world.said()
        assert [world.job(job).state for job in jobs] == ["succeeded"] * 2
        ours = [p for p in psutil.process_iter(["cmdline", "environ"]) if is_of(p, world)]
        assert not ours, "a process that was started for the job is still there"
