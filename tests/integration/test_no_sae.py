"""What has no SAE is told by what it is, and where to look instead: the same of every command that takes an SAE."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.cli.main import run
from orchestrator.settings import Settings
from orchestrator.sweep.sweep import Sweep
from tests import evaluation_shorthand as shorthand
from tests.law_database import finished_sweep
from tests.lens_shorthand import queue_lens
from tests.queue_shorthand import enqueue

pytestmark = pytest.mark.databases("sqlite")

COMMANDS = (["evaluate"], ["results"], ["sae", "show"], ["sae", "verify"])


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run([*arguments]) == 3
    return capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_selector_without_an_sae(command: list[str], engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    enqueue(engine, 3)
    shorthand.imported(engine)
    shorthand.train(engine, artifact=None, outcome="diverged")
    queue.cancel(engine, [2])
    (evaluation,) = shorthand.evaluate(engine, 1)
    lens = queue_lens(engine)
    for selector, message, hint in (
        ("1", "job 1 has no SAE: it diverged", "orch explain 1"),
        ("2", "job 2 has no SAE: it is cancelled", "orch explain 2"),
        ("3", "job 3 has no SAE: it is queued", "orch explain 3"),
        (str(evaluation), f"job {evaluation} is an evaluation, of sae:1", "orch results sae:1"),
        (str(lens), f"job {lens} has no SAE: it trains a tuned lens", f"orch lens show {lens}"),
        ("s", "sweep 's' has no SAE: none of its jobs has finished with one", "orch status s"),
        ("lenses", "sweep 'lenses' has no SAE: its jobs train tuned lenses", "orch lens list"),
        ("evaluations", "sweep 'evaluations' has no SAE of its own", "orch status evaluations"),
        ("scope", "there is no sweep 'scope'", "Is the SAE meant? Write sae:scope"),
    ):
        told = said(capsys, *command, selector)
        assert f"Error: {message}" in told
        assert hint in told


@pytest.mark.parametrize(
    "command",
    [["report"], ["plot"], ["fit"], ["forecast", "--n-latents", "64"], ["plan", "--budget", "1h"]],
    ids=lambda command: command[0],
)
def test_sweeps_that_train_no_sae_are_nothing_to_fit_or_draw(
    command: list[str], engine: Engine, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report on lens jobs alone was an empty page, with exit code 0."""
    queue_lens(engine)
    shorthand.evaluate(engine, shorthand.imported(engine))
    (job_id,) = enqueue(engine)
    queue.cancel(engine, [job_id])
    queue.hide_jobs(engine, [job_id])
    queue.enqueue(engine, Sweep("hollow", ()))
    for sweep, message, hint in (
        ("lenses", "sweep 'lenses' has no SAE: its jobs train tuned lenses", "orch lens list"),
        ("evaluations", "sweep 'evaluations' has no SAE of its own: its jobs evaluate some", "orch status evaluations"),
        ("s", "sweep 's' has no SAE: its jobs are hidden", "orch hide s --undo"),
        ("hollow", "sweep 'hollow' has no SAE: there is no job in it", "orch enqueue FILE"),
    ):
        told = said(capsys, command[0], sweep, *command[1:])
        assert f"Error: {message}" in told
        assert hint in told
    assert not (settings.home / "reports").exists()


def test_sweeps_that_train_no_sae_are_left_out_beside_others_and_told(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were left out, and nothing was said of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("orchestrator.cli.commands.fit_command.ship", lambda _: None)  # seconds; it has its own tests
    finished_sweep(engine)
    queue_lens(engine)
    queue.enqueue(engine, Sweep("hollow", ()))
    for name, *rest in (
        ["forecast", "--n-latents", "4096"], ["plan", "--target-fvu", "0.2"], ["plan", "--lr"],
        ["plot", "--figure", "ln"], ["report"], ["fit", "--law", "ln"],
    ):  # fmt: skip
        assert run([name, "law", "lenses", "hollow", *rest]) == 0
        told = capsys.readouterr().err
        assert "Warning: left out: sweep 'lenses' has no SAE: its jobs train tuned lenses\norch lens list\n" in told
        assert "Warning: left out: sweep 'hollow' has no SAE: there is no job in it\n" in told
        assert told.count("left out: sweep") == 2
        assert run([name, "law", *rest]) == 0
        assert "left out: sweep" not in capsys.readouterr().err
        assert run([name, "law", "lensen", *rest]) == 3
        assert "there is no sweep 'lensen'; did you mean 'lenses'?" in capsys.readouterr().err
