"""The kernel's OOM killer takes a trainer, and the attempt says so."""

import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import MakeWorld
from tests.small_world import COUNTING, World, small_config, trainers
from worker.supervisor.trainer_process import oom_kills

LIMIT = 512 << 20


@pytest.mark.parametrize(
    ("own", "file", "text", "kills"),
    [
        ("0::/a/b", "a/b/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0\n", 2),
        ("0::/../host/x", "memory.events", "oom_kill 1\n", 1),
        ("5:cpu:/\n4:memory:/a\n0::/", "memory/a/memory.oom_control", "oom_kill_disable 0\noom_kill 7\n", 7),
        ("4:cpu,memory:/docker/x", "memory/memory.oom_control", "under_oom 0\noom_kill 4\n", 4),
        ("4:memory:/old", "memory/old/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", 0),
        ("0::/", "other", "oom_kill 9\n", 0),
    ],
    ids=["v2", "v2 in a container", "v1", "v1 in a container", "an old kernel", "nothing tells"],
)
def test_where_the_counter_is(tmp_path: Path, own: str, file: str, text: str, kills: int) -> None:
    (tmp_path / "self").write_text(own + "\n")
    counter = tmp_path / "root" / file
    counter.parent.mkdir(parents=True)
    counter.write_text(text)
    assert oom_kills(tmp_path / "self", tmp_path / "root") == kills
    assert oom_kills(tmp_path / "none", tmp_path / "root") == 0


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of a few hundred megabytes, where we may make one."""
    name = f"orch-{uuid.uuid4().hex}"
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        made = Path(root, name)
        try:
            made.mkdir()
            (made / limit).write_text(str(LIMIT))
        except OSError:
            if made.is_dir():
                made.rmdir()
            continue
        yield made
        made.rmdir()
        return
    pytest.skip("no control group with a memory limit can be made here: the killer itself is not tested")


def test_f28_the_oom_killer_takes_the_trainer(make_world: MakeWorld, group: Path) -> None:
    world = make_world(lease_seconds=2)
    worker = world.work(**COUNTING)
    (group / "cgroup.procs").write_text(str(worker.pid))
    (job,) = world.enqueue(small_config(world.settings.home, seed=14))
    world.wait_state(job, "failed")
    worker.terminate()
    assert worker.wait(30) == 0, "the worker lives on"
    told_so(world, job)


def test_f28_killed_while_the_counter_rises(make_world: MakeWorld, tmp_path: Path) -> None:
    """The same where no control group can be made: SIGKILL, and a counter of ours."""
    world = make_world(lease_seconds=2)
    counter = tmp_path / "oom_kills"
    counter.write_text("1")
    worker = world.work(**COUNTING, ORCH_STEPS="1000", ORCH_OOM_KILLS=str(counter))
    (job,) = world.enqueue(small_config(world.settings.home))
    for attempt in (1, 2):
        world.wait(partial(is_trained, world, job, attempt))
        counter.write_text(str(1 + attempt))
        trainers(worker)[0].kill()
        world.wait(partial(has_ended, world, job, attempt))
    told_so(world, job)


def is_trained(world: World, job: int, attempt: int) -> bool:
    return world.job(job).attempt == attempt and world.last_attempt(job).tokens_start is not None


def has_ended(world: World, job: int, attempt: int) -> bool:
    return world.job(job).attempt == attempt and world.last_attempt(job).outcome is not None


def told_so(world: World, job: int) -> None:
    assert [outcome for outcome, _ in world.attempts(job)] == ["out_of_memory"] * 2
    assert "out of memory twice: the kernel's OOM killer ended its process" in (world.job(job).reason or "")
    assert "lower jobs_per_trainer" in (world.last_attempt(job).error or "")


def test_f04_killed_by_hand_is_a_crash(make_world: MakeWorld) -> None:
    world = make_world(lease_seconds=2)
    worker = world.work(**COUNTING, ORCH_STEPS="1000")
    (job,) = world.enqueue(small_config(world.settings.home))
    world.wait(lambda: world.curve(job))
    trainers(worker)[0].kill()
    world.wait(lambda: world.attempts(job)[0][0] is not None)
    assert world.attempts(job)[0][0] == "crashed"
