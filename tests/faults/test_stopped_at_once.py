"""A machine that stops all its containers at once: the worker saves and ends in time, whatever the servers do."""

from pathlib import Path

from sqlalchemy import func, select

from orchestrator.database.models import LeaseRow
from tests import servers
from tests.faults.conftest import MakeWorld
from tests.faults.proxy import proxy
from tests.small_world import ENDLESS, World, small_config

N_JOBS = 8
STOP_SECONDS = 60.0
"""Of the 120 s between SIGTERM and SIGKILL, which were not enough while each of eight jobs waited for the resolver."""


def _sharing(make_world: MakeWorld, database_url: str, redis: servers.Server, subject: Path, **way: str) -> World:
    """Return a world whose worker trains jobs that share a trainer."""
    world = make_world(
        database_url=database_url, broker_url=redis.url, jobs_per_trainer=N_JOBS, lease_seconds=60, heartbeat_seconds=5
    )
    jobs = world.enqueue(*(small_config(subject, seed=seed, max_tokens=ENDLESS) for seed in range(N_JOBS)))
    by_name = {"ORCH_DATABASE_URL": database_url, "ORCH_BROKER_URL": redis.url}  # an address needs no resolver
    way |= {name: url.replace("127.0.0.1", "localhost") for name, url in by_name.items()}
    world.work(module="tests.faults.crashing", **way)
    world.wait(lambda: all(world.is_in_training(job, 1) for job in jobs), 120)
    assert world.said().count("trainer ") >= N_JOBS
    return world


def _saved(world: World, job: int) -> int:
    """Return the tokens of the newest checkpoint in the folder of a job's first attempt."""
    folder = world.settings.artifacts_folder / str(job) / "1"
    return max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def test_shared_jobs_are_handed_back_together(
    make_world: MakeWorld, database_url: str, redis: servers.Server, subject: Path
) -> None:
    world = _sharing(make_world, database_url, redis, subject)
    (worker,) = world.workers
    worker.terminate()
    assert worker.wait(STOP_SECONDS) == 0, world.said()
    assert not world.rows(select(LeaseRow.job_id))
    assert [world.job(job).state for job in range(1, N_JOBS + 1)] == ["queued"] * N_JOBS


def test_servers_that_stop_with_the_worker_are_waited_for_once_and_not_by_every_job(
    make_world: MakeWorld, database_url: str, postgres: servers.Server, redis: servers.Server, subject: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    sign = tmp_path / "gone"
    with proxy(redis.url) as mlflow:  # it takes connections, and never answers
        mlflow.is_stalled = True
        way = {"ORCH_NO_NAMES": str(sign), "ORCH_TRACKING_URL": f"http://127.0.0.1:{mlflow.port}"}
        world = _sharing(make_world, database_url, redis, subject, **way)
        (worker,) = world.workers
        before = {job: _saved(world, job) for job in range(1, N_JOBS + 1)}
        sign.touch()
        worker.terminate()
        postgres.close()
        redis.close()
        assert worker.wait(STOP_SECONDS) == 0, world.said()
        mlflow.is_stalled = False
    assert all(_saved(world, job) >= before[job] for job in before), "each was saved"
    postgres.ensure()
    redis.ensure()
    assert world.rows(select(func.count()).select_from(LeaseRow))[0][0] == N_JOBS, "which run out, and go on elsewhere"
