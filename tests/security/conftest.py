"""What the tier shares: the servers and databases of the integration tier, a small subject, and something that runs."""

import os
from pathlib import Path

import pytest

from tests.integration.conftest import (  # noqa: F401 - fixtures
    _postgres_template,
    new_postgres,
    postgres_server,
    postgres_settings,
    redis_url,
)
from tests.small_world import make_subject


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)

    @property
    def has_run(self) -> bool:
        return self.folder.exists()


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    return Bomb(tmp_path / "it ran")


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("subject"))
