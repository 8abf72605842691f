"""How many threads a trainer gets where nobody says: the cores, divided among the workers of the host."""

from pathlib import Path

from sqlalchemy import select

from orchestrator.cores import usable_cores
from orchestrator.database.models import WorkerRow
from tests.small_world import make_subject, small_config, small_world


def test_the_workers_of_a_host_divide_its_cores(tmp_path: Path) -> None:
    subject = make_subject(tmp_path / "subject")
    with small_world(tmp_path / "home") as world:
        for name in ("one", "two"):
            world.start("--device", "cpu", "--name", name)
        world.wait(lambda: len(world.rows(select(WorkerRow.token))) == 2)
        for worker in world.workers[1:]:
            worker.terminate()
            worker.wait(30)
        shared, alone = world.workers[0], None
        world.wait(lambda: len(world.rows(select(WorkerRow.token).where(WorkerRow.ended_at.is_(None)))) == 1)
        (first,) = world.enqueue(small_config(subject))
        world.wait_state(first, "succeeded")
        alone = (world.last_attempt(first).facts or {})["threads"]
        world.start("--device", "cpu", "--name", "three")
        world.wait(lambda: len(world.rows(select(WorkerRow.token).where(WorkerRow.ended_at.is_(None)))) == 2)
        (second,) = world.enqueue(small_config(subject, seed=1))
        world.wait_state(second, "succeeded")
        assert shared.poll() is None
        assert (alone, (world.last_attempt(second).facts or {})["threads"]) == (
            usable_cores(), max(1, usable_cores() // 2),
        )  # fmt: skip
