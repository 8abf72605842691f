"""Two hosts with a data folder of their own, one database, one broker and one folder of artifacts."""

from pathlib import Path

import pytest

from orchestrator import dispatch
from tests import servers
from tests.faults.conftest import MakeWorld, Whole, train_undisturbed
from tests.small_world import COUNTING, LONG, make_subject, small_config

TOKENS = LONG // 2


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads a text: each machine packs it."""
    return make_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module")
def whole(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return train_undisturbed(tmp_path_factory.mktemp("whole") / "home", subject, TOKENS)


def test_f03_one_sweep_on_two_machines_and_one_of_them_dies(
    make_world: MakeWorld, subject: Path, whole: Whole, database_url: str, redis: servers.Server, tmp_path: Path
) -> None:
    shared = {"database_url": database_url, "broker_url": redis.url, "artifacts": tmp_path / "shared"}
    here, there = make_world("here", **shared), make_world("there", **shared)
    configs = [small_config(subject, max_tokens=tokens) for tokens in (TOKENS, 2048)]
    jobs = long, _ = here.enqueue(*configs)
    dying = here.work("--name", "here")
    here.wait(lambda: here.is_in_training(long, 1))
    assert dispatch.wake(there.settings, jobs)
    other = there.work("--name", "there", "--until-empty")
    dying.kill()
    assert other.wait(200) == 0, there.said()
    assert all(there.job(job).state == "succeeded" for job in jobs)
    (lost, _), (done, resumed_at) = there.attempts(long)
    assert (lost, done) == ("lost", "max_tokens")
    assert resumed_at
    assert there.curve(long) == whole.curve
    assert {path.name for path in (tmp_path / "shared" / str(long)).iterdir()} == {"1", "2"}
    assert not (here.settings.home / "artifacts").exists()
    assert Path(there.result(long).artifact_uri or "").is_relative_to(tmp_path / "shared")
    for world in (here, there):
        assert [*(world.settings.home / "tokens").glob("*.u16")], "each has packed the text for itself"


def test_two_machines_share_the_work(
    make_world: MakeWorld, database_url: str, redis: servers.Server, tmp_path: Path
) -> None:
    shared = {"database_url": database_url, "broker_url": redis.url, "artifacts": tmp_path / "shared"}
    here, there = make_world("here", **shared), make_world("there", **shared)
    jobs = here.enqueue(*(small_config(tmp_path, n_latents=32 + at) for at in range(6)))
    hold = tmp_path / "hold"
    hold.touch()
    names = [(world, world.settings.home.name) for world in (here, there)]
    workers = [world.work("--name", name, "--until-empty", **COUNTING, ORCH_HOLD=str(hold)) for world, name in names]
    here.wait(lambda: all(here.curve(job) for job in jobs[:2]))  # so that each has one
    hold.unlink()
    assert [worker.wait(200) for worker in workers] == [0, 0], here.said() + there.said()
    assert all(here.attempts(job) == [("max_tokens", 0)] for job in jobs)
    assert {here.last_attempt(job).worker for job in jobs} == {"here", "there"}
