"""The data folder under any name, and after it was moved: all that is written is in it, and what is named is there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.main import run
from orchestrator.database.schema import current
from orchestrator.settings import Settings, sqlite_file
from tests.small_world import ROOT, SYNTHETIC, World, small_config, small_world
from worker.tracking.mlflow_client import MlflowClient

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SWEEP = "subject.model: synthetic:gaussian?d_model=16\ntraining.seed: {seed}\n"


@pytest.mark.parametrize("name", ["a?1 %41 %3F", "ü #+&;", "sqlite:x"])
def test_everything_is_in_the_folder_of_that_name(
    name: str, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    above = tmp_path / "above"
    homes = [above / f"{name}{number}" for number in range(2)]
    sweep = tmp_path / "s.yaml"
    for number, home in enumerate(homes):
        monkeypatch.setenv("ORCH_HOME", str(home))
        sweep.write_text(SWEEP.format(seed=number))
        assert run(["enqueue", str(sweep)]) == 0
        settings = Settings(home=home)
        assert sqlite_file(settings.database) == home / "orch.db"
        assert current(settings) is not None
        if number:  # as it is made in a folder of that name, the first has shown
            shutil.copy(empty_store, home / "mlflow.db")
        client = MlflowClient(settings)
        made = client.create(client.experiment("s", known=None, number=1), "run", tags={}, at=0.0)
        client.add_file(made, sweep, "kept")
        assert len([*home.rglob("s.yaml")]) == 1
        capsys.readouterr()
        assert run(["status", "-o", "json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["items"]) == 1, "each folder has a queue of its own"
        assert run(["db", "backup", str(tmp_path / f"{number}.db")]) == 0
    assert sorted(above.iterdir()) == sorted(homes), "nothing lies outside"


WRITE = """
import sys
from pathlib import Path
from orchestrator.settings import Settings
from worker.tracking.mlflow_client import MlflowClient
client = MlflowClient(Settings(home=Path(sys.argv[1])))
run = client.create(client.experiment("s", known=None, number=1), "before", tags={}, at=0.0)
client.add_file(run, Path(sys.argv[2]), "sae")
print(run)
"""


def test_mlflow_follows_a_moved_folder(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    file = tmp_path / "a.txt"
    file.write_text("kept")
    # In a process of its own, as a worker is: MLflow remembers where the artifacts of a run are.
    written = subprocess.run([sys.executable, "-W", "ignore", "-c", WRITE, str(old), str(file)], check=True,
                             capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    before = written.stdout.strip()
    shutil.move(old, new)
    client = MlflowClient(Settings(home=new))
    assert client.has_file(before, "sae")
    after = client.create(client.experiment("s", known=None, number=1), "after", tags={}, at=0.0)
    client.add_file(after, file, "sae")
    client.add_file(before, file, "more")
    assert not old.exists()
    assert len([*new.rglob("a.txt")]) == 3


def test_a_job_goes_on_in_a_moved_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_world(tmp_path / "old") as before:
        (job,) = before.enqueue(small_config(SYNTHETIC, max_tokens=2_000_000))
        worker = before.work()
        before.wait(lambda: before.is_in_training(job, 1))
        worker.terminate()
        assert worker.wait(60) == 0, before.said()
    shutil.move(tmp_path / "old", tmp_path / "new")
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "new"))
    (kept, *_) = checkpoints(job, capsys)
    assert Path(kept).is_relative_to(tmp_path / "new")
    with small_world(tmp_path / "new") as after:
        after.work()
        after.wait(lambda: after.has_checkpoint(job, 2))
        started = after.attempts(job)[1][1]
        assert started, "it goes on from its checkpoint"
    assert not (tmp_path / "old").exists()


def checkpoints(job: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert run(["show", str(job), "--checkpoints", "-o", "json"]) == 0
    return [item["uri"] for item in json.loads(capsys.readouterr().out)["items"]]


def test_show_says_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_world(tmp_path / "home") as world:
        job = ended(world)
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))
    for gone in (False, True):
        assert run(["show", str(job)]) == 0
        said = capsys.readouterr().out
        assert ("which is not on this machine" in said) is gone
        shutil.rmtree(tmp_path / "home" / "artifacts", ignore_errors=True)


def ended(world: World) -> int:
    (job,) = world.enqueue(small_config(SYNTHETIC, max_tokens=2048))
    assert world.work("--until-empty").wait(120) == 0, world.said()
    return job
