"""A password in a URL is not in what is printed, logged, stored or tracked, nor in a trainer's environment."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from sqlalchemy import make_url, select

from orchestrator.database.models import Table
from orchestrator.settings import Settings
from tests.small_world import LONG, SYNTHETIC, World, small_config, small_world, trainers
from worker.tracking.shipper import sync

MARK = "hush5f3a"
AWAY = {
    "ORCH_DATABASE_URL": f"postgresql+psycopg://me:{MARK}@127.0.0.1:1/orch",
    "ORCH_BROKER_URL": f"redis://:{MARK}@127.0.0.1:1/0",
    "ORCH_TRACKING_URL": f"http://me:{MARK}@127.0.0.1:1",
}
ODD = {
    "ORCH_DATABASE_URL": f"postgresql://127.0.0.1:1/orch?user=me&password={MARK}",
    "ORCH_BROKER_URL": f"redis://127.0.0.1:1/0?password={MARK}",
    "ORCH_TRACKING_URL": f"http://me:{MARK}@localhost",  # no port: urllib takes the password for one
}
WRONG = {
    "ORCH_DATABASE_URL": f"me:{MARK}@127.0.0.1/orch",
    "ORCH_BROKER_URL": f"http://me:{MARK}@127.0.0.1",
    "ORCH_TRACKING_URL": f"ftp://me:{MARK}@127.0.0.1",
}
COMMANDS = (
    "status", "enqueue examples/quickstart.yaml", "show 1", "explain 1", "logs 1", "wait quickstart", "cancel 1 --yes",
    "retry 1", "gc --yes", "db upgrade", "db current", "db check", "tracking sync", "doctor", "config show --origin",
    "ui --no-browser --port 1", "--debug status", "worker --until-empty",
)  # fmt: skip
ONE_AFTER_ANOTHER = """
import sys
from orchestrator.cli.main import run
for command in sys.argv[1:]:
    print(f"\\n$ {command}", flush=True)
    run(command.split())
"""
"""A process for all commands, as most of the time of one goes into imports; `worker` replaces it, and is the last."""
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("places", [AWAY, ODD, WRONG], ids=["away", "odd", "wrong"])
def test_no_command_says_a_password(places: dict[str, str], tmp_path: Path) -> None:
    environ = {**os.environ, **places, "ORCH_HOME": str(tmp_path / "home"), "BROWSER": "true"}
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, *COMMANDS], env=environ, cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=200,
    )  # fmt: skip
    parts = [part.partition("\n") for part in done.stdout.split("\n$ ")[1:]]
    assert [command for command, _, _ in parts] == [*COMMANDS], done.stdout
    for command, _, said in parts:
        assert said.strip(), command
        assert MARK not in said, f"{command}:\n{said}"
        assert "should not have happened" not in said, f"{command}:\n{said}"
    assert not _files_with_the_mark(tmp_path)


@contextmanager
def _tracking_server_that_hangs_up() -> Iterator[str]:
    class Silence(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.close_connection = True

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Silence) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://me:{MARK}@127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_worker_keeps_its_passwords_to_itself(
    postgres_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGPASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, MARK)
    database = make_url(postgres_settings.database_url).set(password=MARK).render_as_string(hide_password=False)
    with (
        _tracking_server_that_hangs_up() as tracking,
        small_world(
            tmp_path / "home", database_url=database, broker_url=AWAY["ORCH_BROKER_URL"], tracking_url=tracking,
        ) as world,
    ):  # fmt: skip
        (good,) = world.enqueue(small_config(SYNTHETIC, max_tokens=LONG // 4))
        (bad,) = world.enqueue(small_config(tmp_path), name="bad", max_failures=1)
        worker = world.work()
        world.wait(lambda: world.is_in_training(good, 1))
        for trainer in trainers(worker):
            assert MARK not in "\n".join([*trainer.cmdline(), *trainer.environ().values()])
        assert MARK not in "\n".join(psutil.Process(worker.pid).cmdline())
        world.wait_state(bad, "failed")
        world.wait(lambda: "MLflow does not take what it is given" in world.said())
        worker.terminate()
        assert worker.wait(60) == 0, world.said()
        assert "***" in world.said()
        assert not _rows_with_the_mark(world)
    assert not _files_with_the_mark(tmp_path)


def _rows_with_the_mark(world: World) -> list[str]:
    tables = Table.metadata.sorted_tables
    return [str(row) for table in tables for row in world.rows(select(table)) if MARK in str(row)]


def _files_with_the_mark(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mlflow_is_told_no_password(tmp_path: Path, empty_store: Path) -> None:
    with small_world(tmp_path / "home") as world:
        shutil.copy(empty_store, world.settings.home)
        config = small_config(tmp_path)
        data = config.data.model_copy(update={"source": f"https://me:{MARK}@host/text.jsonl?token={MARK}"})
        model = config.subject.model_copy(update={"model": f"https://me:{MARK}@host/model"})
        world.enqueue(config.model_copy(update={"data": data, "subject": model}))
        assert sync(world.engine, world.settings, "small") == 1
        store = b"".join(file.read_bytes() for file in world.settings.home.glob("mlflow.db*"))
        assert b"https://me:***@host/model" in store
        assert MARK.encode() not in store
