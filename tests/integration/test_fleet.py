"""`orch worker --devices`: two workers from one command; signals, deaths and the queue's end."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from orchestrator.database.models import Attempt
from orchestrator.formatting import named
from tests.small_world import ENDLESS, SYNTHETIC, World, is_gone, small_config, small_world

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def subject() -> Path:
    return SYNTHETIC


def fleet(world: World, *arguments: str) -> subprocess.Popen[bytes]:
    return world.start("--devices", "cpu,cpu", "--name", "two", *arguments)


def members(started: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """Return the workers of a fleet by label."""
    found = {}
    for child in psutil.Process(started.pid).children():
        line = child.cmdline()
        if "--label" in line:
            found[line[line.index("--label") + 1]] = child
    return found


def workers_of(world: World) -> set[str]:
    return {name for (name,) in world.rows(select(Attempt.worker).distinct())}


def test_two_workers_empty_the_queue_together(subject: Path, tmp_path: Path) -> None:
    with small_world(tmp_path / "home", jobs_per_trainer=1) as world:
        jobs = world.enqueue(*(small_config(subject, max_tokens=4096, n_latents=n) for n in (32, 48, 64)))
        started = fleet(world, "--until-empty")
        assert started.wait(120) == 0, world.said()
        assert [world.job(job).state for job in jobs] == ["succeeded"] * 3
        assert workers_of(world) == {"two-cpu1", "two-cpu2"}
        said = world.said()
        each = named(max(1, len(psutil.Process().cpu_affinity()) // 2), "thread")
        assert f"2 workers with {each} each: cpu1, cpu2" in said
        for label in ("cpu1", "cpu2"):
            assert re.search(rf"\[{label}\] job \d+: small", said)
            assert f"[{label}] worker two-{label} ends" in said


def test_a_death_is_told_and_mended_and_sigterm_reaches_everybody_once(subject: Path, tmp_path: Path) -> None:
    with small_world(tmp_path / "home", jobs_per_trainer=1) as world:
        jobs = world.enqueue(*(small_config(subject, max_tokens=ENDLESS, n_latents=n) for n in (32, 48)))
        started = fleet(world)
        world.wait(lambda: all(world.is_in_training(job, 1) for job in jobs))
        before = members(started)
        assert set(before) == {"cpu1", "cpu2"}
        before["cpu2"].kill()
        world.wait(lambda: "worker cpu2 was ended by SIGKILL; it starts again in 1 s" in world.said())
        world.wait(lambda: members(started).get("cpu2", before["cpu2"]).pid != before["cpu2"].pid)
        assert members(started)["cpu1"].pid == before["cpu1"].pid
        world.wait(lambda: "[cpu2] worker two-cpu2-2 on cpu" in world.said())  # the lease of the dead one still runs
        last = members(started)
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0, world.said()
        assert all(is_gone(process) for process in last.values())
        assert world.said().count("shutdown: writing a checkpoint") == len(
            [job for job in jobs if world.attempts(job)[-1][0] == "preempted"]
        )
        assert "preempted" in {outcome for job in jobs for outcome, _ in world.attempts(job)}
        assert world.said().count("worker two-cpu1 ends") == world.said().count("worker two-cpu2-2 ends") == 1


def test_interrupted_before_the_end_is_told(subject: Path, tmp_path: Path) -> None:
    with small_world(tmp_path / "home", jobs_per_trainer=1) as world:
        (job,) = world.enqueue(small_config(subject, max_tokens=ENDLESS))
        started = fleet(world, "--until-empty")
        world.wait(lambda: world.is_in_training(job, 1))
        started.send_signal(signal.SIGINT)
        assert started.wait(60) == 130, world.said()
        assert world.attempts(job)[0][0] == "preempted"


def test_workers_do_not_outlive_a_killed_fleet(subject: Path, tmp_path: Path) -> None:
    with small_world(tmp_path / "home", jobs_per_trainer=1) as world:
        (job,) = world.enqueue(small_config(subject, max_tokens=ENDLESS))
        started = fleet(world)
        world.wait(lambda: world.is_in_training(job, 1))
        left = members(started)
        started.kill()
        world.wait(lambda: all(is_gone(process) for process in left.values()))
        assert world.attempts(job)[0][0] == "preempted"  # they were stopped, not cut off


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--devices", "0,0"), "there twice"),
        (("--devices", "x"), "is no device"),
        (("--devices", "cpu,99"), "cuda:99: torch sees no such GPU"),
        (("--devices", "cpu", "--device", "cpu"), "--device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_devices_are_refused_before_anything_is_claimed(
    subject: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    from click.testing import CliRunner

    from orchestrator.cli.main import cli

    with small_world(tmp_path / "home") as world:
        (job,) = world.enqueue(small_config(subject))
        if "--device" in arguments:
            done = CliRunner().invoke(cli, ["worker", *arguments])
            assert (done.exit_code, says in done.output) == (2, True)
        worker = subprocess.run(
            [sys.executable, "-m", "worker", *arguments], env=world.environ, capture_output=True, text=True, check=False
        )
        assert worker.returncode == 2, worker.stderr
        assert says in worker.stderr
        assert world.attempts(job) == []
