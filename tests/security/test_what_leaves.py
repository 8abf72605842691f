"""One secret in every place it can stand in, and control characters too: nothing of them leaves the database."""

import os
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

import pytest
from mlflow import MlflowClient

from orchestrator import masking
from orchestrator.cli.main import run
from orchestrator.database.schema import open_database
from orchestrator.masking import clean, mask, mask_all
from orchestrator.settings import Settings
from worker.tracking.shipper import sync

MARK = "hush5f3a9c"
TITLE = "\x1b]0;owned\x07"
CODES = ("\x1b", "\x07", "\x9b", "\u202e")
SWEEP = f"""# the text is at https://me:{MARK}@127.0.0.1:1/a.jsonl?token={MARK}, password: {MARK}
name: small
labels:
  where: https://me:{MARK}@host/x
  api_key: {MARK}
  note: "{TITLE.encode("unicode_escape").decode()}\\x9b2J \\u202ebackwards Bearer {MARK}"
limits: {{max_failures: 1}}
overrides:
  subject.model: shipped:stdlib-gpt2
  data.source: https://me:{MARK}@127.0.0.1:1/a.jsonl?token={MARK}
  sae.k: 4
  sae.n_latents: 64
  training.max_tokens: 64_000
sweep:
  - grid: {{data.name: ["?api_key={MARK}", "{TITLE.encode("unicode_escape").decode()}"]}}
"""
COMMANDS = (
    "enqueue sweep.yaml --dry-run", "enqueue sweep.yaml", "config validate sweep.yaml", "enqueue missing{title}.yaml",
    "worker --until-empty --name w{title}", "status", "status -o wide", "status -o json", "status -o csv", "show 1",
    "show 1 -o json", "show 1 --config", "show 1 --events", "show 1 --events -o json", "show 1 --attempts",
    "show 1 --attempts -o csv", "explain 1", "logs 1", "worker list --ended", "worker list --ended -o json", "top",
    "report small -o page.html --no-open", "report small -o -", "plot small --dir plots", "config show", "doctor",
    "metrics", "queue", "wait small", "retry {title}", "--debug show 99", "tracking sync small",
)  # fmt: skip


PROCESSES = ("enqueue sweep.yaml", "worker --until-empty --name w{title}", "status", "--debug show 99")
"""What is run in a process of its own; the rest in the process of the test, which takes a tenth of the time."""


def _secret_environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "ORCH_HOME": str(folder / "home"), "HF_TOKEN": MARK, "AWS_SECRET_ACCESS_KEY": MARK, "HF_HUB_OFFLINE": "1",
        "ORCH_BROKER_URL": f"redis://:{MARK}@127.0.0.1:1/0",
    }  # fmt: skip


def _said(words: list[str], folder: Path, *, capfd: pytest.CaptureFixture[str] | None) -> str:
    """Return all that a command says: in this process where its output can be captured, else in one of its own."""
    if capfd is None:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator", *words], cwd=folder, env=_secret_environment(folder),
            capture_output=True, text=True, check=False, timeout=200, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.stdout + done.stderr
    capfd.readouterr()
    with patch.dict(os.environ, _secret_environment(folder)), chdir(folder):
        run(words)
    return "".join(capfd.readouterr())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_secret_in_every_place_leaves_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert set(PROCESSES) < set(COMMANDS)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    said: dict[str, str] = {}
    for command in COMMANDS:
        words = [word.replace("{title}", TITLE) for word in command.split()]
        said[command] = _said(words, tmp_path, capfd=None if command in PROCESSES else capfd)
        assert "should not have happened" not in said[command], f"{command}:\n{said[command]}"
        print(command, said[command])
    for command, text in said.items():
        assert MARK not in text, f"{command}:\n{text}"
        assert not any(code in text for code in CODES), f"{command}:\n{text!r}"
    assert "failed" in said["status"], said["status"]
    assert "https://me:***@127.0.0.1:1/a.jsonl?token=***" in said["show 1 --config"]
    settings = Settings(home=tmp_path / "home")
    engine = open_database(settings)
    assert sync(engine, settings, "small") == 2
    engine.dispose()
    (run,) = MlflowClient(settings.tracking).search_runs(["1"], "tags.`orch.job_id` = '1' and tags.`orch.kind` = 'job'")
    assert run.data.tags["orch.label.where"] == "https://me:***@host/x"
    leaky = [path.name for path in tmp_path.rglob("*") if path.is_file() and MARK.encode() in path.read_bytes()]
    assert {name.partition("-")[0] for name in leaky} <= {"orch.db", "sweep.yaml"}, "the database and the file itself"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://me:a/b@c@host/x and redis://:pw@h/0", "see https://me:***@host/x and redis://:***@h/0"),
        ("https://ghp_0123456789abcdef@github.com/x", "https://***@github.com/x"),
        ("GET /x?a=1&X-Amz-Signature=abc&b=2", "GET /x?a=1&X-Amz-Signature=***&b=2"),
        ("HF_TOKEN=hunter22 and password: 'hunter22'", "HF_TOKEN=*** and password: '***'"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("it said hf_abcdefghijklmnop", "it said ***"),
        *[(text, text) for text in ("tokens: 4096, batch_tokens=8", "eos_token: <|endoftext|>")],
        ('{"token": "01234567"}', '{"token": "01234567"}'),
    ],
)  # fmt: skip
def test_what_is_a_secret(text: str, shown: str) -> None:
    assert mask(text) == shown
    assert mask(shown) == shown


def test_values_of_programs_are_masked_by_their_names() -> None:
    token = "0123456789ab4def8123456789abcdef"
    values = {"password": "x", "token": token, "list": ["redis://:pw@h"], "api_key": None, "n": 3}
    shown = {"password": "***", "token": token, "list": ["redis://:***@h"], "api_key": None, "n": 3}
    assert mask_all(values) == shown


def test_a_text_that_comes_again_is_masked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys and reasons of a fit's points are the same ones thousands of times."""
    seen: list[str] = []

    def counted(text: str) -> str:
        seen.append(text)
        return mask(text)

    monkeypatch.setattr(masking, "mask", counted)
    values = [{"why": "of redis://:pw@h", "password": at} for at in ("", "first", "second")] * 100
    shown = [{"why": "of redis://:***@h", "password": at} for at in ("", "***", "***")] * 100
    assert mask_all(values) == shown
    assert sorted(seen) == ["", "of redis://:pw@h", "password", "why"]


def test_control_characters_are_written_out() -> None:
    assert clean("a\x1b[2J\tb\n\x9b\u202e\r\x00") == r"a\x1b[2J" + "\tb\n" + r"\x9b\u202e\r\x00"
    assert clean("a\nb", lines=False) == r"a\nb"
