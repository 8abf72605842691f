"""MLflow is away at the start, in the middle and at the end, or used by several for the first time at once."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.curves.point import Point
from orchestrator.mlflow_store import fault
from orchestrator.settings import load
from tests import servers
from tests.faults.conftest import MakeWorld, orch
from tests.faults.proxy import proxy
from tests.small_world import COUNTING, ROOT, World, small_config, small_world
from worker.tracking.shipper import sync

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STEPS = 20
OWN = {"ORCH_TRACKING_URL": ""}
"""For `World.work`: the store is in the data folder."""
FIRST_USE = """
import sys
import mlflow
from orchestrator.settings import load
from worker.tracking.mlflow_client import MlflowClient
print("ready", flush=True)
sys.stdin.readline()
runs = MlflowClient(load())
print("made", flush=True)
sys.stdin.readline()
for number in range(20):  # often enough that two look, and both find none
    runs.experiment(f"made at once {number}", known=None, number=1)
experiment = runs.experiment("first", known=None, number=1)
run = runs.create(experiment, sys.argv[1], tags={"who": sys.argv[1]}, at=1.0)
runs.params(run, {"lr": 0.1})
print(experiment, run)
"""


@contextmanager
def tracking_server(folder: Path, store: str = "") -> Iterator[str]:
    """Yield the URL of a real MLflow server, with a database of its own in the folder or another one."""
    url = f"http://127.0.0.1:{servers.free_port()}"
    command = [
        sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--backend-store-uri", store or f"sqlite:///{folder}/flow.db",
        "--artifacts-destination", str(folder / "files"), "--host", "127.0.0.1", "--port", url.rpartition(":")[2],
        "--workers", "1",
    ]  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True)
    try:
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def test_f30_the_tracking_server_is_away(make_world: MakeWorld, empty_store: Path, tmp_path: Path) -> None:
    world = make_world()
    shutil.copy(empty_store, tmp_path / "flow.db")
    with tracking_server(tmp_path) as url, proxy(url) as between:
        way = {"ORCH_TRACKING_URL": between.before(url)}
        between.cut()
        (start,) = world.enqueue(small_config(tmp_path), name="start")
        assert world.work("--until-empty", **COUNTING, **way).wait(120) == 0, world.said()
        assert "MLflow does not take what it is given" in world.said()
        world.wait(lambda: answers(url), 120)
        between.mend()
        (middle,) = world.enqueue(small_config(tmp_path), name="middle")
        hold = tmp_path / "hold"
        hold.touch()
        worker = world.work("--until-empty", **COUNTING, **way, ORCH_STEPS=str(STEPS), ORCH_HOLD=str(hold))
        world.wait(lambda: shipped(url, middle), 120)
        between.cut()
        assert world.job(middle).state == "running"
        hold.unlink()
        assert worker.wait(120) == 0, world.said()
        assert "MLflow lacks the latest of this worker" in world.said()
        for job in (start, middle):
            assert world.attempts(job) == [("max_tokens", 0)]
        before = shipped(url, middle)
        assert 0 < len(before) < STEPS
        between.mend()
        command = [sys.executable, "-m", "worker", "sync", "start"]
        assert (
            subprocess.run(command, cwd=ROOT, env={**os.environ, **world.environ, **way}, check=False).returncode == 0
        )
        tracked = load(start=tmp_path, environ=world.environ | way)
        for _ in range(2):
            for job, sweep in ((start, "start"), (middle, "middle")):
                assert sync(world.engine, tracked, sweep) == 1
                steps = [int(point[0]) for point in world.curve(job)]
                assert sorted(shipped(url, job)) == steps, "every point once"


def shipped(url: str, job: int) -> list[int]:
    """Return the steps MLflow holds of a job's loss."""
    from mlflow import MlflowClient

    assert "fvu" in Point._fields
    client = MlflowClient(url)
    places = [experiment.experiment_id for experiment in client.search_experiments()]
    asked = f"tags.`orch.job_id` = '{job}' and tags.`orch.kind` = 'job'"
    runs = client.search_runs(places, asked)
    assert len(runs) <= 1
    return [metric.step for run in runs for metric in client.get_metric_history(run.info.run_id, "fvu")]


def test_f31_first_use_by_several_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "ORCH_HOME": str(tmp_path / "home"), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-W", "ignore", "-c", FIRST_USE]
    with ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        users = [
            stack.enter_context(subprocess.Popen([*command, name], cwd=ROOT, env=environment, **pipes))  # type: ignore[call-overload]
            for name in "abc"
        ]
        for moment in ("ready", "made"):
            assert [user.stdout.readline() for user in users] == [f"{moment}\n"] * 3
            for user in users:
                user.stdin.write("go\n")
                user.stdin.flush()
        said = [user.communicate(timeout=200) for user in users]
    assert [user.returncode for user in users] == [0, 0, 0], said
    experiments, runs = zip(*(out.split() for out, _ in said), strict=True)
    assert len(set(runs)) == 3
    assert len(set(experiments)) == 1


def _half_made(store: Path) -> None:
    """Leave a store as a process does that is killed while MLflow makes the schema in it."""
    for wait in (0.1, 0.3, 0.6, 1.0, 0.05, 0.2):
        for part in store.parent.glob(f"{store.name}*"):
            part.unlink()
        make = [sys.executable, "-c", f"from mlflow import MlflowClient; MlflowClient('sqlite:///{store}')"]
        process = subprocess.Popen([*make[:2], f"{make[2]}.search_experiments()"], stderr=subprocess.DEVNULL)
        while not (store.exists() and store.stat().st_size) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        process.kill()
        process.wait()
        if fault(store) == "it was left half made":
            return
    pytest.skip("this machine makes a schema too fast to be killed in it")


@pytest.fixture(scope="module")
def tracked(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder whose one job is in its MLflow store."""
    from mlflow import MlflowClient

    home = tmp_path_factory.mktemp("tracked") / "home"
    with small_world(home) as world:
        shutil.copy(empty_store, home / "mlflow.db")
        world.enqueue(small_config(home), name="first")
        assert world.work("--until-empty", **COUNTING, **OWN).wait(120) == 0, world.said()
        assert len(MlflowClient(f"sqlite:///{home}/mlflow.db").search_runs(["1"])) == 2
    return home


@pytest.mark.parametrize("damage", ["half made", "overwritten"])
def test_a_damaged_store_is_made_anew_from_the_database(
    make_world: MakeWorld, tracked: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(tracked, tmp_path / "home", symlinks=True)
    world, first = make_world(), 1
    store = world.settings.home / "mlflow.db"
    if damage == "half made":
        _half_made(store)
    else:
        store.write_bytes(b"no database at all" * 1000)
    assert "WARN  tracking" in orch(world, "doctor", **OWN)
    (second,) = world.enqueue(small_config(tmp_path), name="second")
    assert world.work("--until-empty", **COUNTING, **OWN).wait(120) == 0, world.said()
    assert "MLflow's store was damaged; it is made anew" in world.said()
    assert "Traceback" not in world.said()
    assert list(store.parent.glob("mlflow.db.broken-*"))
    assert shipped(f"sqlite:///{store}?again", first) == shipped(f"sqlite:///{store}?again", second)
    assert shipped(f"sqlite:///{store}?again", first)


def test_a_worker_killed_in_its_first_seconds_leaves_no_half_made_store(world: World, tmp_path: Path) -> None:
    """Killed while MLflow makes its schema, and as soon as that is in its place."""
    store = world.settings.home / "mlflow.db"
    for sign in ("mlflow.db.*.partial", "mlflow.db"):
        world.enqueue(small_config(tmp_path), name=f"killed at {sign}")  # each worker has something to ship
        worker = world.work(**COUNTING, **OWN)
        world.wait(lambda: any(file.stat().st_size for file in store.parent.glob(sign)))  # noqa: B023 - waited for here
        worker.kill()
        worker.wait()
        assert store.exists() == (sign == store.name)
        assert not store.exists() or fault(store) is None
    (job,) = world.enqueue(small_config(tmp_path), name="last")
    assert world.work("--until-empty", **COUNTING, **OWN).wait(120) == 0, world.said()
    assert shipped(f"sqlite:///{store}", job)
    assert not list(store.parent.glob("*.partial*"))
