"""Real servers once per session, and for every test a database of its own, copied from a migrated template."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text

from orchestrator.database.engine import connect
from orchestrator.database.schema import open_database, upgrade
from orchestrator.settings import Settings
from tests import servers
from tests.law_database import finished_sweep

TEMPLATE = "orch_test_template"
DATABASES = {"sqlite": "sqlite_settings", "postgresql": "postgres_settings"}
NewDatabase = Callable[[bool], str]


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with ExitStack() as stack:
        try:
            url = stack.enter_context(servers.postgres())
        except servers.NoServer as missing:
            url = ""
            _without(missing)
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with ExitStack() as stack:
        try:
            url = stack.enter_context(servers.redis())
        except servers.NoServer as missing:
            url = ""
            _without(missing)
        yield url


def _without(missing: Exception) -> None:
    if os.environ.get("CI"):
        pytest.fail(str(missing))
    pytest.skip(str(missing))


@pytest.fixture(scope="session")
def _postgres_template(postgres_server: str) -> str:
    _run(postgres_server, f'DROP DATABASE IF EXISTS "{TEMPLATE}"')
    _run(postgres_server, f'CREATE DATABASE "{TEMPLATE}"')
    upgrade(Settings(database_url=_sibling(postgres_server, TEMPLATE)))
    return TEMPLATE


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("template")
    upgrade(Settings(home=home))
    return home / "orch.db"


@pytest.fixture
def new_postgres(request: pytest.FixtureRequest) -> Iterator[NewDatabase]:
    """Make a database on the server, migrated or bare, and return its URL."""
    server: str = request.getfixturevalue("postgres_server")
    made: list[str] = []

    def make(migrated: bool) -> str:
        name = f"orch_test_{uuid.uuid4().hex}"
        template = request.getfixturevalue("_postgres_template") if migrated else "template1"
        _run(server, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        made.append(name)
        return _sibling(server, name)

    yield make
    for name in made:
        _run(server, f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def postgres_settings(new_postgres: NewDatabase, tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", database_url=new_postgres(True))


@pytest.fixture
def sqlite_settings(_sqlite_template: Path, tmp_path: Path) -> Settings:
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir(exist_ok=True)
    shutil.copy(_sqlite_template, settings.home / "orch.db")
    return settings


@pytest.fixture(scope="session")
def law_database(_sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a database with a finished sweep of a known law, to be copied."""
    settings = Settings(home=tmp_path_factory.mktemp("law"))
    shutil.copy(_sqlite_template, settings.home / "orch.db")
    engine = open_database(settings)
    finished_sweep(engine)
    engine.dispose()
    return settings.home / "orch.db"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each database, or on those that the marker `databases` of it, or else of its file, names."""
    named = [str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")]
    if "settings" in metafunc.fixturenames and not any("settings" in names for names in named):
        chosen = metafunc.definition.get_closest_marker("databases")
        metafunc.parametrize("settings", chosen.args if chosen else DATABASES, indirect=True)


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    found: Settings = request.getfixturevalue(DATABASES[request.param])
    return found


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = open_database(settings)
    yield engine
    engine.dispose()


def _sibling(url: str, name: str) -> str:
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _run(url: str, statement: str) -> None:
    engine = connect(url, limits=False)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement))
    engine.dispose()
