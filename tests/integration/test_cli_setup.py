"""init, db, doctor, config, completion, also when a server is out of reach."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from orchestrator.cli.main import run
from orchestrator.config.validation import field_paths
from orchestrator.database.schema import HEAD
from orchestrator.settings import Settings, load

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("ORCH_HOME")
    folder = tmp_path / "a place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_init_makes_a_place_and_keeps_what_is_there(here: Path, capsys: Capture) -> None:
    assert run(["init"]) == 0
    assert "orch demo" in capsys.readouterr().err
    assert (here / ".orch" / "orch.db").exists()
    text = (here / "orch.toml").read_text()
    (here / "orch.toml").write_text(text + 'device = "cpu"\n')
    assert run(["init", "--service"]) == 0
    assert "stays as it is" in capsys.readouterr().err
    assert load(start=here).device == "cpu"
    assert load(start=here).embedded


def test_init_for_servers_touches_none(here: Path, capsys: Capture) -> None:
    assert run(["init", "sub", "--service"]) == 0
    assert "orch db upgrade" in capsys.readouterr().err
    settings = load(start=here / "sub")
    assert settings.database_url.startswith("postgresql+psycopg://")
    assert settings.broker_url.startswith("redis://")
    assert not (here / "sub" / ".orch").exists()


def test_config(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["config", "path"]) == 0
    assert capsys.readouterr().out == ""
    run(["init"])
    monkeypatch.setenv("ORCH_DATABASE_URL", "postgresql+psycopg://me:secret@host/orch")
    capsys.readouterr()
    assert run(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{here / 'orch.toml'}\n"
    assert run(["config", "show", "--origin"]) == 0
    out = capsys.readouterr().out
    assert "secret" not in out
    assert re.search(r"me:\*\*\*@host/orch +environment", out)
    assert run(["config", "show", "-o", "json"]) == 0
    items = {item["name"]: item for item in json.loads(capsys.readouterr().out)["items"]}
    assert (items["home"]["origin"], items["lease_seconds"]["value"]) == ("file", 90.0)
    assert run(["config", "schema"]) == 0
    said = capsys.readouterr().out
    assert all(key in said for key in field_paths())
    assert "training.max_tokens  whole number above 0; default 20_000_000" in said
    assert run(["config", "schema", "--json"]) == 0
    assert "SaeConfig" in json.loads(capsys.readouterr().out)["$defs"]


def test_config_validate(capsys: Capture) -> None:
    quickstart = str(ROOT / "examples" / "quickstart.yaml")
    assert run(["config", "validate", quickstart]) == 0
    assert " jobs, all valid" in capsys.readouterr().out
    assert run(["config", "validate", quickstart, "sae.kk=3"]) == 2
    assert "did you mean 'sae.k'" in capsys.readouterr().err


def test_a_name_that_is_nearly_a_folder_there_is_warned_of(here: Path, capsys: Capture) -> None:
    file = here / "s.yaml"
    (here / "my-text").mkdir()
    file.write_text("name: s\ndata: {source: my-txt}\n")
    for command in (("config", "validate"), ("enqueue", "--dry-run"), ("enqueue",)):
        assert run([*command, str(file)]) == 0
        assert "Warning: data.source: no file or folder my-txt is here" in capsys.readouterr().err, command


def test_config_validate_refuses_a_lens_without_a_database_and_makes_none(here: Path, capsys: Capture) -> None:
    file = here / "lensed.yaml"
    file.write_text("name: lensed\nsubject.layer: 1\nsae: {k: 4, lens: nolens}\n")
    assert run(["config", "validate", str(file)]) == 3
    assert "there is no lens 'nolens'" in capsys.readouterr().err
    assert [path.name for path in here.rglob("*") if path.is_file()] == ["lensed.yaml"]


def test_a_wrong_setting_is_exit_code_2(here: Path, capsys: Capture) -> None:
    (here / "orch.toml").write_text("lease_secs = 3\n")
    for command in (["status"], ["worker"], ["demo"], ["doctor"]):
        assert run(command) == (1 if command == ["doctor"] else 2)
        said = capsys.readouterr()
        assert "did you mean 'lease_seconds'" in said.out + said.err


def test_db(capsys: Capture) -> None:
    assert run(["db", "current"]) == 0
    assert capsys.readouterr().out == "none\n"
    assert run(["db", "check"]) == 5
    assert "orch db upgrade" in capsys.readouterr().err
    for _ in range(2):
        assert run(["db", "upgrade"]) == 0
    assert run(["db", "check"]) == 0
    assert HEAD in capsys.readouterr().out


def test_a_stale_service_schema_is_refused_with_the_command(
    postgres_settings: Settings, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_DATABASE_URL", postgres_settings.database)
    assert run(["status"]) == 0
    engine = create_engine(postgres_settings.database)
    with engine.begin() as connection:
        connection.execute(text("UPDATE orch_alembic_version SET version_num = '0000'"))
    engine.dispose()
    capsys.readouterr()
    for command in (["status"], ["db", "check"], ["enqueue", str(ROOT / "examples" / "quickstart.yaml"), "--dry-run"]):
        assert run(command) == 5
        assert "orch db upgrade" in capsys.readouterr().err


def test_servers_out_of_reach(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_DATABASE_URL", "postgresql+psycopg://me:secret@127.0.0.1:1/orch")
    monkeypatch.setenv("ORCH_BROKER_URL", "redis://:secret@127.0.0.1:1/0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    for command in (["status"], ["db", "upgrade"], ["cancel", "1"]):
        assert run(command) == 5
        said = capsys.readouterr().err
        assert said.startswith("Error: database ")
        assert "secret" not in said
    assert run(["doctor", "-o", "json"]) == 1
    out = capsys.readouterr().out
    assert "secret" not in out
    levels = {item["name"]: item["level"] for item in json.loads(out)["items"]}
    assert (levels["database"], levels["broker"], levels["tracking"]) == ("FAIL", "WARN", "WARN")


def test_a_folder_that_cannot_be_made(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "file" / "home"))
    assert run(["status"]) == 5
    assert "ORCH_HOME" in capsys.readouterr().err


def test_doctor_is_content(capsys: Capture) -> None:
    assert run(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if not line.startswith(" ")} <= {"OK", "WARN"}
    assert any(line.startswith("OK    device") for line in lines)


def test_ui_before_there_is_anything(capsys: Capture) -> None:
    assert run(["ui", "--no-browser"]) == 3
    assert "orch demo" in capsys.readouterr().err


def test_ui_of_a_server_elsewhere(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracking:5000")
    assert run(["ui", "--no-browser"]) == 0
    assert capsys.readouterr().out == "http://me:***@tracking:5000\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_scripts(shell: str, capsys: Capture) -> None:
    assert run(["completion", shell]) == 0
    assert "_ORCH_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("orch sta", "status"),
        ("orch show ", "1"),
        ("orch cancel qui", "quickstart"),
        ("orch status -s queued,ru", "running"),
    ],
)
def test_completion_knows_commands_jobs_sweeps_and_states(words: str, offered: str) -> None:
    assert run(["enqueue", str(ROOT / "examples" / "quickstart.yaml")]) == 0
    assert offered in _completed(words)


def test_completion_never_fails_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _completed("orch show ") == ""
    assert not (tmp_path / "home").exists()
    monkeypatch.setenv("ORCH_DATABASE_URL", "nonsense")
    assert _completed("orch show ") == ""


def _completed(words: str) -> str:
    parts = words.split(" ")
    asked = {"_ORCH_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(parts) - 1)}
    command = [sys.executable, "-m", "orchestrator"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.stdout.strip()
