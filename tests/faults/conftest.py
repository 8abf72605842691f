"""Servers of our own, which a test may end; worlds that use them; and a training that nobody disturbs."""

import io
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import redis as redis_client
from sqlalchemy import make_url, select, text

from orchestrator.cli.main import run
from orchestrator.database.engine import connect
from orchestrator.database.models import ConvergenceRow
from orchestrator.database.schema import upgrade
from orchestrator.settings import Settings
from tests import servers
from tests.small_world import LONG, SYNTHETIC, World, small_config, small_world

MakeWorld = Callable[..., World]
_GPUS_UNASKED = patch("orchestrator.diagnosis.machine._PROBE", "print(0)")
"""Lets `orch doctor` load no torch to find GPUs, which takes seconds: `test_doctor` has it do so."""


class Whole(NamedTuple):
    """What a training from end to end comes to."""

    curve: list[tuple[float, ...]]
    counts: list[Any]


@pytest.fixture(scope="session")
def subject() -> Path:
    return SYNTHETIC


@pytest.fixture(scope="session")
def whole(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return train_undisturbed(tmp_path_factory.mktemp("whole") / "home", subject, LONG)


def train_undisturbed(home: Path, subject: Path, max_tokens: int) -> Whole:
    """Train a job from end to end."""
    with small_world(home) as world:
        (job,) = world.enqueue(small_config(subject, max_tokens=max_tokens))
        assert world.work("--until-empty").wait(200) == 0, world.said()
        return Whole(world.curve(job), counts(world, job))


def counts(world: World, job: int) -> list[Any]:
    """Return the tokens to convergence of a job, for every tolerance."""
    columns = select(ConvergenceRow.epsilon, ConvergenceRow.tokens, ConvergenceRow.lower_bound)
    return [*world.rows(columns.where(ConvergenceRow.job_id == job).order_by(ConvergenceRow.epsilon))]


def orch(world: World, *words: str, **variables: str) -> str:
    """Run a command in this process, and return what it says: one of its own would import everything anew."""
    said = io.StringIO()
    environ = {"ORCH_TRACKING_URL": "http://127.0.0.1:1", **world.environ, **variables}
    with patch.dict(os.environ, environ), _GPUS_UNASKED, redirect_stdout(said), redirect_stderr(said):
        run(words)
    return said.getvalue()


@pytest.fixture(scope="session")
def _postgres() -> Iterator[tuple[servers.Server, str]]:
    with ExitStack() as stack:
        server = _entered(stack, servers.postgres_server())
        upgrade(Settings(database_url=_in(server, "template")))
        yield server, "template"


@pytest.fixture(scope="session")
def _redis() -> Iterator[servers.Server]:
    with ExitStack() as stack:
        yield _entered(stack, servers.redis_server())


def _entered(stack: ExitStack, server: Any) -> servers.Server:
    try:
        found: servers.Server = stack.enter_context(server)
    except servers.NoServer as missing:
        pytest.fail(str(missing)) if os.environ.get("CI") else pytest.skip(str(missing))
    return found


@pytest.fixture
def postgres(_postgres: tuple[servers.Server, str]) -> servers.Server:
    """A PostgreSQL that a test may end: it keeps what it has acknowledged."""
    _postgres[0].ensure()
    return _postgres[0]


@pytest.fixture
def redis(_redis: servers.Server) -> servers.Server:
    """An empty Redis that a test may end."""
    _redis.ensure()
    redis_client.Redis.from_url(_redis.url).flushall()
    return _redis


@pytest.fixture
def database_url(postgres: servers.Server, _postgres: tuple[servers.Server, str]) -> str:
    """A new database with the schema."""
    return _in(postgres, f"orch_{uuid.uuid4().hex}", template=_postgres[1])


@pytest.fixture
def empty_database_url(postgres: servers.Server) -> str:
    """A new database without any table."""
    return _in(postgres, f"empty_{uuid.uuid4().hex}")


def _in(server: servers.Server, name: str, *, template: str = "template1") -> str:
    engine = connect(server.url, limits=False)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
    engine.dispose()
    return make_url(server.url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """Make worlds that end with the test; each job of theirs has a trainer of its own."""
    with ExitStack() as stack:

        def make(name: str = "home", **settings: Any) -> World:
            return stack.enter_context(small_world(tmp_path / name, **{"jobs_per_trainer": 1} | settings))

        yield make


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()
