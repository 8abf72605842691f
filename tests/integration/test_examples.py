"""Every sweep file in examples/ expands, and what its comments tell a person to type is there."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from orchestrator.cli.main import cli, run
from orchestrator.config.validation import field_paths
from tests.small_world import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
PROTOCOLS = {
    "gaussian-control", "planted-spectrum", "loss-by-latents", "loss-by-compute", "loss-by-latents-and-k",
    "learning-rate", "learning-rate-by-latents", "subject-size", "layers-and-sites", "activations-at-equal-l0",
    "multi-layer", "multi-layer-expansion", "multi-layer-k",
}  # fmt: skip
NO_FIT = {
    "learning-rate", "layers-and-sites", "activations-at-equal-l0", "multi-layer", "multi-layer-expansion",
    "multi-layer-k",
}  # fmt: skip
NUMBERS = {
    "four": 4,
    "five": 5,
    "seven": 7,
    "nine": 9,
    "ten": 10,
    "twelve": 12,
    "nineteen": 19,
    "twenty-one": 21,
    "24": 24,
    "27": 27,
    "30": 30,
    "36": 36,
    "45": 45,
}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _at_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ORCH_HOME", str(tmp_path / "home"))


def comments(file: Path) -> str:
    return "\n".join(re.findall(r"#.*", file.read_text()))


def commands(file: Path) -> list[list[str]]:
    """Return the commands of a file's comments: on lines of their own, or between backquotes."""
    said = comments(file)
    found = [*re.findall(r"^#   (orch .*)", said, re.M), *re.findall(r"`(orch [^`]*)`", said)]
    return [shlex.split(part)[1:] for line in found for part in line.split(" && ")]


def test_every_protocol_has_its_file() -> None:
    assert {file.stem for file in EXAMPLES} == PROTOCOLS | {"quickstart"}


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_it_expands(file: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["enqueue", str(file.relative_to(ROOT)), "--dry-run", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sweep"] == file.stem
    counted = re.search(r"# (?!The)([\w-]+) jobs\b", comments(file))
    if counted:
        assert len(found["items"]) == NUMBERS[counted[1].lower()]
    assert not (tmp_path / "home").exists(), "a dry run leaves nothing behind"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_its_comments_tell_the_truth(file: Path) -> None:
    context = click.Context(cli)
    assert commands(file)
    for name, *rest in commands(file):
        command = cli.get_command(context, name)
        assert command, f"there is no orch {name}"
        command.make_context(name, rest, parent=context).close()
    for path in re.findall(r"\b(?:examples/)?([\w-]+\.yaml)", comments(file)):
        assert (ROOT / "examples" / path).exists(), path
    for key in re.findall(r"\b((?:subject|data|sae|optimizer|training|stop)\.[a-z0-9_]+)", comments(file)):
        assert key in field_paths(), key


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_protocol_says_how_it_is_run_and_what_a_real_one_changes(name: str) -> None:
    file = ROOT / "examples" / f"{name}.yaml"
    said = comments(file)
    assert [words[0] for words in commands(file)][:3] == ["enqueue", "worker", "status"]
    assert f"orch enqueue examples/{name}.yaml" in said
    assert f"orch status {name}" in said
    assert name in NO_FIT or f"orch fit {name} --law" in said
    assert "two cores" in said
    assert "GPT-2 small" in said or "paper" in said
