"""Nothing is read, shown or deleted outside the data folder, and only its owner may read it."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, update

from orchestrator import queue
from orchestrator.database.engine import transaction
from orchestrator.database.models import CheckpointRow
from orchestrator.database.schema import make_folder, open_database
from orchestrator.settings import Settings
from orchestrator.storage import garbage
from tests.queue_shorthand import claim, enqueue, point, result
from tests.small_world import LONG, SYNTHETIC, World, small_config, small_world
from worker.tracking.shipper import sync


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = open_database(settings)
    yield engine
    engine.dispose()


def _succeeded(engine: Engine, uri: Path) -> str:
    """Let a job succeed whose checkpoint, the database says, is at `uri`; return its folder's name."""
    (job,) = enqueue(engine)
    lease = claim(engine).lease
    queue.begin(engine, lease, {}, 0)
    queue.record(engine, lease, [point(100)])
    queue.checkpointed(engine, lease, queue.CheckpointRef(uri=str(uri), tokens_seen=100, sha256="00"))
    queue.finish(engine, lease, replace(result(), artifact_uri=str(uri)))
    return str(job)


def _filled(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "precious").write_text("mine")
    return folder


def _collect(engine: Engine, settings: Settings) -> list[Path]:
    return [item.path for item in garbage.remove(engine, garbage.find(engine, settings, older_than=0.0))]


@pytest.mark.parametrize("where", ["home/artifacts/../../elsewhere/1/100", "elsewhere/1/100", "home/100"])
def test_gc_deletes_nothing_because_a_row_says_so(
    where: str, engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    folder = _filled((tmp_path / where).resolve())
    job = _succeeded(engine, tmp_path / where)
    own = _filled(settings.home / "artifacts" / job / "1" / "100")
    assert _collect(engine, settings) == [own]
    assert (folder / "precious").exists()


@pytest.mark.parametrize("link", ["{job}", "{job}/1", "{job}/1/100"])
def test_gc_follows_no_link_out_of_the_artifacts(link: str, engine: Engine, settings: Settings, tmp_path: Path) -> None:
    job = _succeeded(engine, tmp_path)
    artifacts, outside = settings.home / "artifacts", tmp_path / "outside"
    rest = Path(job, "1", "100").relative_to(link.format(job=job))
    folder = _filled(outside / rest if rest.parts else outside)
    (folder / ".99.1.partial").mkdir()
    os.utime(folder / ".99.1.partial", (0, 0))
    (artifacts / link.format(job=job)).parent.mkdir(parents=True)
    (artifacts / link.format(job=job)).symlink_to(outside)
    assert _collect(engine, settings) == []
    assert (folder / "precious").exists()


def test_gc_knows_artifacts_that_are_on_another_disk(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    job = _succeeded(engine, tmp_path)
    (tmp_path / "disk").mkdir()
    (settings.home / "artifacts").symlink_to(tmp_path / "disk")
    _filled(tmp_path / "disk" / job / "1" / "100")
    assert _collect(engine, settings) == [settings.home / "artifacts" / job / "1" / "100"]


WAYS = ("elsewhere", "up and out", "link")


def test_a_job_goes_on_from_no_checkpoint_outside_its_folder(tmp_path: Path) -> None:
    with small_world(tmp_path / "home") as world:
        configs = (small_config(SYNTHETIC, max_tokens=LONG // 2, n_latents=48 + 16 * at) for at in range(len(WAYS)))
        jobs = world.enqueue(*configs, max_failures=1)
        first = world.work()
        world.wait(lambda: [world.is_in_training(job, 1) for job in jobs] == [True] * len(jobs))
        world.wait(lambda: all(len(_uris(world, job)) > 1 for job in jobs))
        first.terminate()
        assert first.wait(60) == 0, world.said()
        newest = [_led_outside(world, job, way, tmp_path) for job, way in zip(jobs, WAYS, strict=True)]
        assert world.work("--until-empty").wait(120) == 0, world.said()
        for job, way, outside in zip(jobs, WAYS, newest, strict=True):
            assert world.job(job).state == "succeeded", way
            (_, resumed_at) = world.attempts(job)[1]
            assert resumed_at not in (None, outside), f"{way}: from the other one, which its own folder proves"


def _uris(world: World, job: int) -> list[str]:
    """Return where the checkpoints of a job are, the newest first."""
    query = select(CheckpointRow.uri).filter_by(job_id=job).order_by(CheckpointRow.tokens_seen.desc())
    return [uri for (uri,) in world.rows(query)]


def _led_outside(world: World, job: int, way: str, tmp_path: Path) -> int:
    """Let a job's newest checkpoint lie outside its folder, in one of the ways; return its tokens."""
    newest = Path(_uris(world, job)[0])
    outside = tmp_path / "outside" / str(job) / newest.name
    outside.parent.mkdir(parents=True)
    shutil.move(newest, outside)
    if way == "link":
        newest.symlink_to(outside)
    dotted = newest.parent / "../../../../outside" / str(job) / outside.name
    assert dotted.exists(), "the way out leads there"
    ways = {"elsewhere": outside, "up and out": dotted}
    with transaction(world.engine) as session:
        mine = update(CheckpointRow).where(CheckpointRow.job_id == job)
        session.execute(mine.values(uri=str(ways.get(way, newest))))
    return int(newest.name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mlflow_is_given_no_file_outside_the_artifacts(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    outside = _filled(tmp_path / "outside")
    job = _succeeded(engine, outside)
    own = settings.home / "artifacts" / "2" / "1" / "final"
    _filled(own)
    (own / "stolen").symlink_to(outside / "precious")
    (second,) = enqueue(engine, start=1, name="s")
    lease = claim(engine).lease
    queue.begin(engine, lease, {}, 0)
    queue.finish(engine, lease, replace(result(), artifact_uri=str(own)))
    assert sync(engine, settings, "s") == 2, (job, second)
    given = [path.name for path in (settings.home / "mlartifacts").rglob("*") if path.is_file()]
    assert sorted(name for name in given if name != "curve.png") == ["precious"], "the one in its own folder"
    assert _mode(settings.home / "mlflow.db") == 0o600


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def _generous() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_generous")
def test_the_data_folder_is_its_owners_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "new" / "home")
    engine = open_database(settings)
    enqueue(engine)
    files = {path.name: _mode(path) for path in settings.home.iterdir()}
    engine.dispose()
    assert _mode(settings.home) == 0o700
    assert files.pop("orch.db") == 0o600
    assert set(files.values()) == {0o600}, files


@pytest.mark.usefixtures("_generous")
def test_a_folder_that_was_opened_to_others_stays_open(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o2770)
    (tmp_path / "shared").chmod(0o2770)
    make_folder(tmp_path / "shared")
    assert _mode(tmp_path / "shared") == 0o2770
