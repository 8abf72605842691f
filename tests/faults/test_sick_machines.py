"""A machine that cannot do its work: its jobs spend nothing and go on elsewhere, and its worker says why it waits."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select, text

from orchestrator.database.engine import connect, transaction
from orchestrator.database.models import CheckpointRow, WorkerRow
from orchestrator.database.schema import open_database
from tests.faults.conftest import MakeWorld, orch
from tests.small_world import COUNTING, ENDLESS, LONG, World, small_config

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small or a read-only disk"
)
Mount = Callable[..., None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount disks that end with the test."""
    mounted: list[Path] = []

    def mount(folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        words = ["mount", "-t", "tmpfs", *(["-o", ",".join(options)] if options else []), "none", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr}")
        mounted.append(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _tokens(folder: Path) -> set[int]:
    """Return the tokens of the checkpoints in the folder of an attempt."""
    return {int(path.name) for path in folder.iterdir() if path.name.isdecimal()}


@contextmanager
def _filled(folder: Path) -> Iterator[None]:
    """Fill a disk to its last byte."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 10, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    yield
    ballast.unlink()


def test_a_folder_of_logs_that_cannot_be_written_costs_logs_alone(world: World, mount: Mount, subject: Path) -> None:
    mount(world.settings.logs_folder, "ro")
    jobs = world.enqueue(*(small_config(subject, seed=seed) for seed in range(2)))
    assert world.work("--until-empty", **COUNTING).wait(200) == 0, world.said()
    assert [world.attempts(job) for job in jobs] == [[("max_tokens", 0)]] * 2
    assert "WARN  logs" in orch(world, "doctor")


def test_a_full_folder_of_logs_ends_no_trainer(world: World, mount: Mount, subject: Path) -> None:
    mount(world.settings.logs_folder, "size=64k")
    (job,) = world.enqueue(small_config(subject, max_tokens=4096))
    with _filled(world.settings.logs_folder):
        assert world.work("--until-empty").wait(200) == 0, world.said()
    assert world.attempts(job) == [("max_tokens", 0)]


def test_full_artifacts_cost_no_job_anything(
    make_world: MakeWorld, mount: Mount, subject: Path, tmp_path: Path
) -> None:
    mount(tmp_path / "disk", "size=300m")
    world = make_world(artifacts=tmp_path / "disk")
    configs = (small_config(subject, seed=seed, max_tokens=tokens) for seed, tokens in enumerate((LONG // 2, 4096)))
    jobs = world.enqueue(*configs, max_failures=1)
    gate = tmp_path / "gate"
    gated = {"module": "tests.faults.crashing", "ORCH_TRAINER": "tests.faults.gated", "ORCH_GATE": str(gate)}
    worker = world.work(**gated)
    world.wait(lambda: world.is_in_training(jobs[0], 1))
    gate.touch()
    world.wait((tmp_path / "waiting").exists)
    with _filled(tmp_path / "disk"):
        gate.unlink()
        world.wait(lambda: world.attempts(jobs[0])[0][0] == "machine")
        world.wait(lambda: "unwell, and claims nothing: " in world.said())
        world.wait(lambda: bool(world.one(WorkerRow, pid=worker.pid).unwell))
        assert "unwell" in orch(world, "worker", "list")
        assert "is unwell and claims nothing: " in orch(world, "status")
        assert "is unwell" in orch(world, "explain", str(jobs[0]))
        assert "through no fault of the job" in orch(world, "explain", str(jobs[0]))
        assert 'orch_workers{state="unwell"} 1' in orch(world, "metrics")
        assert "1 unwell" in orch(world, "doctor")
        attempts = sum(world.job(job).attempt for job in jobs)
        refused = world.work("--name", "late")
        assert refused.wait(60) == 5, "where the checks fail no worker starts"
        assert "No job is claimed here before." in world.said()
    for job in jobs:
        world.wait_state(job, "succeeded")
        assert (world.job(job).failures, world.job(job).preemptions) == (0, 0)
    assert attempts <= 2, "it claimed nothing more while its disk was full"
    assert "well again" in world.said()


def test_read_only_artifacts_beside_a_healthy_machine(
    make_world: MakeWorld, mount: Mount, subject: Path, tmp_path: Path, database_url: str
) -> None:
    sick, well = (
        make_world(name, database_url=database_url, artifacts=tmp_path / name / "a", jobs_per_trainer=together)
        for name, together in (("s", 1), ("w", 8))
    )
    mount(tmp_path / "s" / "a")
    worker = sick.work("--name", "sick")
    sick.wait(lambda: bool(sick.rows(select(WorkerRow.token))))
    subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "s" / "a")], check=True)
    jobs = sick.enqueue(*(small_config(subject, seed=seed, max_tokens=2048) for seed in range(6)), max_failures=1)
    sick.wait(lambda: sick.job(jobs[0]).attempt == 1)
    assert well.work("--name", "well", "--until-empty").wait(200) == 0, well.said()
    assert [sick.job(job).state for job in jobs] == ["succeeded"] * 6
    assert {sick.last_attempt(job).worker for job in jobs} == {"well"}
    assert sum(sick.job(job).failures for job in jobs) == 0
    assert worker.poll() is None


def test_a_job_whose_checkpoints_are_on_another_machine_waits_for_it(
    make_world: MakeWorld, subject: Path, database_url: str
) -> None:
    """The worker that sees them has trainers that count; the other one's are real: it is they who look."""
    here, there = (make_world(name, database_url=database_url) for name in ("here", "there"))
    (job,) = here.enqueue(small_config(subject), max_failures=1)
    hold = here.settings.home / "hold"
    hold.touch()
    counting = {**COUNTING, "ORCH_STEPS": "16", "ORCH_HOLD": str(hold)}
    first = here.work("--name", "first", **counting)
    here.wait(lambda: here.is_in_training(job, 1))
    here.wait(lambda: len(here.rows(select(CheckpointRow.uri))) > 1)
    first.terminate()
    assert first.wait(60) == 0
    (other,) = here.enqueue(small_config(subject, max_tokens=2048), name="other")
    blind = there.work("--name", "blind")
    there.wait_state(other, "succeeded")
    there.wait(lambda: there.attempts(job)[-1][0] == "machine")
    assert (there.job(job).state, there.job(job).failures) == ("queued", 0)
    said = orch(there, "explain", str(job))
    recorded = here.rows(select(CheckpointRow.uri).filter_by(job_id=job))
    assert f"none of {len(recorded)} checkpoints is there" in said
    assert "it waits for a worker that can see them" in said
    assert "unwell" not in orch(there, "worker", "list")
    blind.terminate()
    assert here.work("--name", "second", "--until-empty", **COUNTING).wait(120) == 0, here.said()
    assert here.job(job).state == "succeeded"
    assert here.attempts(job)[-1][1], "it went on from its checkpoint"


def test_a_hub_out_of_reach_for_a_moment_costs_no_job(make_world: MakeWorld) -> None:
    world = make_world(jobs_per_trainer=2)
    configs = [small_config(Path("nobody/no-such-model"), seed=seed) for seed in range(2)]
    jobs = world.enqueue(*configs, max_failures=1)
    worker = world.work(HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:1")
    world.wait(lambda: all(world.job(job).attempt for job in jobs))
    world.wait(lambda: "the hub cannot be reached" in world.said())
    worker.terminate()
    worker.wait(60)
    assert [(world.job(job).state, world.job(job).failures) for job in jobs] == [("queued", 0)] * 2


@pytest.mark.parametrize("how", ["deleted", "replaced", "emptied"])
def test_a_database_that_goes_away_under_a_worker_stops_it_and_keeps_its_checkpoints(
    world: World, subject: Path, how: str
) -> None:
    """A real trainer is told where the file is deleted; in the other two its place is taken by one that counts."""
    (job,) = world.enqueue(small_config(subject, max_tokens=ENDLESS))
    worker = world.work() if how == "deleted" else world.work(**COUNTING, ORCH_STEPS="100000")
    world.wait(lambda: world.is_in_training(job, 1))
    file, saved = world.settings.home / "orch.db", world.settings.artifacts_folder / str(job) / "1"
    before = _tokens(saved)
    world.engine.dispose()
    if how == "emptied":
        engine = connect(world.settings.database)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE orch_alembic_version")
        engine.dispose()
    else:
        for part in world.settings.home.glob("orch.db*"):
            part.unlink()
        if how == "replaced":
            open_database(world.settings).dispose()
    assert worker.wait(60) == 5, world.said()
    words = {"deleted": f"{file} was deleted", "replaced": f"{file} was replaced", "emptied": "its tables are gone"}
    assert f"the database is gone: {words[how]}" in world.said()
    assert max(_tokens(saved)) >= max(before), "a last checkpoint was written"


def test_a_job_of_a_database_brought_back_goes_on_from_what_its_folder_proves(
    world: World, subject: Path, tmp_path: Path
) -> None:
    (job,) = world.enqueue(small_config(subject, max_tokens=LONG))
    first = world.work()
    world.wait(lambda: world.is_in_training(job, 1))
    copy = tmp_path / "copy.db"
    assert "A copy of" in orch(world, "db", "backup", str(copy))
    known = {row.tokens_seen for row in world.rows(select(CheckpointRow.tokens_seen))}
    world.wait(lambda: not known & _tokens(world.settings.artifacts_folder / "1" / "1"))
    first.terminate()
    assert first.wait(60) == 0
    world.engine.dispose()
    for part in world.settings.home.glob("orch.db*"):
        part.unlink()
    shutil.copy(copy, world.settings.home / "orch.db")
    assert world.work("--until-empty").wait(200) == 0, world.said()
    (lost, _), (done, resumed_at) = world.attempts(job)
    assert (lost, done) == ("lost", "max_tokens")
    assert (resumed_at or 0) > max(known)
    tokens = [point[0] for point in world.curve(job)]
    assert len(tokens) == len(set(tokens))
    assert any(max(known) < at <= (resumed_at or 0) for at in tokens), "the curve has no gap"


def test_checkpoints_that_cannot_be_read_are_passed_over_loudly(world: World, subject: Path) -> None:
    (job,) = world.enqueue(small_config(subject))
    first = world.work(**COUNTING, ORCH_STEPS="100000")
    world.wait(lambda: world.is_in_training(job, 1))
    first.terminate()
    assert first.wait(60) == 0
    for (uri,) in world.rows(select(CheckpointRow.uri)):
        Path(uri, "manifest.json").write_text("{}")
    assert world.work("--until-empty").wait(200) == 0, world.said()
    assert world.attempts(job)[1] == ("max_tokens", 0)
    assert "tokens cannot be read: it goes on from 0" in world.said()


def test_doctor_sees_what_a_worker_would(make_world: MakeWorld, mount: Mount, tmp_path: Path) -> None:
    mount(tmp_path / "disk", "size=1m")
    world = make_world(artifacts=tmp_path / "disk")
    said = orch(world, "doctor")
    assert "FAIL  disk      0.0 GB free" in said, "the disk of the artifacts, too"
    with transaction(world.engine) as session:
        session.execute(text("UPDATE orch_alembic_version SET version_num = '9999'"))
    said = orch(world, "doctor")
    assert "FAIL  database" in said
    assert "has schema 9999" in said
