"""What `orch forecast` says of a k that was not fitted, and `orch plan` as the head of a pipe."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator.cli.main import run
from orchestrator.database.schema import open_database
from orchestrator.settings import Settings
from orchestrator.sweep import expand
from tests.worker_shorthand import let_commands_reach

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def known(law_database: Path, sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    let_commands_reach(sqlite_settings, monkeypatch)
    shutil.copy(law_database, sqlite_settings.home / "orch.db")
    engine = open_database(sqlite_settings)
    yield engine
    engine.dispose()


def test_a_k_beyond_those_fitted_is_told(known: Engine, capsys: Capture) -> None:
    assert run(["forecast", "law", "--n-latents", "512", "--k", "8,32"]) == 0
    said = capsys.readouterr().err
    assert "k = 32 was not fitted (4, 8 were): its fvu is by L(N,K), and its tokens are those of k = 8." in said
    assert "k = 32 is above d_model / 4 = 16" in said
    assert "k = 8 was not" not in said


@pytest.mark.parametrize("arguments", [("--budget", "10 min"), ("--target-fvu", "0.3"), ("--lr",)])
def test_a_plan_goes_to_stdout_alone(
    known: Engine, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["plan", "law", *arguments, "-o", "-"]) == 0
    said = capsys.readouterr()
    file = tmp_path / "next.yaml"
    file.write_text(said.out)
    assert said.out.startswith("# Written by: orch plan law")
    assert expand(file).configs
    assert " K " in said.err
    assert not (tmp_path / "-").exists()
