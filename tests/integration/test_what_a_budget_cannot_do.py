"""What commands say of dead latents that no window could show, of texts read again and again, and of L0."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator import lr_search, queue, results
from orchestrator.cli.main import run
from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError
from orchestrator.formatting import count
from orchestrator.sweep.sweep import Sweep
from tests.queue_shorthand import claim, point, result
from worker.tracking.job_record import read

pytestmark = pytest.mark.databases("sqlite")

BUDGET, HELDOUT = 65_536, 1024
SWEEP = f"""
version: 1
name: small
overrides:
  subject.layer: 3
  data.source: SOURCE
  training.batch_tokens: 256
  training.shuffle_tokens: 1024
  training.heldout_tokens: {HELDOUT}
  training.max_tokens: {BUDGET}
  training.dead_after_tokens: 10_000_000
  sae.n_latents: 256
  sae.k: 8
"""
FACTS: dict[str, Any] = {"d_model": 128, "n_latents": 256, "lr": 1e-3, "heldout_tokens": HELDOUT}
DEAD = "dead latents cannot be measured, and AuxK never acts"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("seven. " * 2048)  # 14,336 bytes: some 4,096 tokens
    path = tmp_path / "small.yaml"
    path.write_text(SWEEP.replace("SOURCE", str(text)))
    return path


def finished(engine: Engine, **facts: Any) -> int:
    """Let the next job run its budget."""
    lease = claim(engine).lease
    queue.begin(engine, lease, FACTS | facts, 0)
    points = [point(BUDGET * part // 4, dead_share=0.0, l0=7.9, aux_loss=0.0) for part in (1, 2, 3)]
    queue.record(engine, lease, [*points, point(BUDGET, 0.4, dead_share=0.0, l0=7.9, aux_loss=0.808, aux_nothing=1.01)])
    queue.finish(engine, lease, result(outcome="max_tokens", tokens_seen=BUDGET))
    return lease.job_id


@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
def test_enqueue_warns(file: Path, engine: Engine, dry_run: list[str], capsys: Capture) -> None:
    assert run(["enqueue", str(file), *dry_run]) == 0
    told = capsys.readouterr()
    assert f"{DEAD}: a latent is dead after 10.0M silent tokens, the budget is 65.5k.\n" in told.err
    assert "Set training.dead_after_tokens below the budget, such as 8_192, or raise training.max_tokens" in told.err
    assert "a budget of 65.5k is about 21 passes over about 3.07k trainable tokens.\n" in told.err
    assert "~21" in told.out


def test_enqueue_tells_a_program(file: Path, engine: Engine, capsys: Capture) -> None:
    assert run(["enqueue", str(file), "--dry-run", "-o", "json"]) == 0
    (job,) = json.loads(capsys.readouterr().out)["items"]
    assert (job["trainable_tokens"], job["trainable_tokens_are"], job["measures_dead_latents"]) == (
        3072,
        "about",
        False,
    )
    assert job["passes"] == pytest.approx(BUDGET / 3072)


def test_nothing_is_said_of_a_budget_that_can(file: Path, engine: Engine, capsys: Capture) -> None:
    fits = ["training.dead_after_tokens=8192", "data.source=python:stdlib", "training.max_tokens=65536,32768"]
    assert run(["enqueue", str(file), "--dry-run", *fits]) == 0
    assert "Warning" not in capsys.readouterr().err
    assert run(["enqueue", str(file), "--dry-run", *fits, "training.max_tokens=65536,8192"]) == 0
    assert f"Warning: 1 of 2 jobs: {DEAD}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "trainable"), [({"n_tokens": 13_024, "trainable": 11_900}, 11_900), ({"n_tokens": 13_024}, 12_000)]
)
def test_a_job_has_told_how_long_its_text_is(
    file: Path, engine: Engine, text: dict[str, int], trainable: int, capsys: Capture
) -> None:
    run(["enqueue", str(file)])
    finished(engine, tokens=text)
    (row,) = results.jobs(engine)
    assert (row.trainable_tokens, row.passes) == (trainable, BUDGET / trainable)
    (job,) = results.measured(engine, ["small"])
    assert (job.trainable_tokens, job.passes) == (trainable, BUDGET / trainable)
    capsys.readouterr()
    other = ["training.heldout_tokens=2024", "data.seed=3", "training.max_tokens=524288"]
    assert run(["enqueue", str(file), "--dry-run", *other]) == 0
    left = trainable - 1000
    told = f"a budget of 524k is {524_288 / left:.0f} passes over {count(left)} trainable tokens."
    assert told in capsys.readouterr().err, "counted, for another held-out part and another order"
    assert run(["status", "-o", "wide"]) == 0
    assert "PASSES" in capsys.readouterr().out
    run(["show", "1"])
    assert "passes over 1" in capsys.readouterr().out


def test_a_share_that_no_window_could_show(file: Path, engine: Engine, capsys: Capture) -> None:
    run(["enqueue", str(file), "training.dead_after_tokens=32768,10_000_000"])
    measured, not_measured = finished(engine), finished(engine)
    assert [row.dead_share for row in results.jobs(engine)] == [0.0, None]
    assert [row.dead_share for row in results.measured(engine, ["small"])] == [0.0, None]
    capsys.readouterr()

    run(["status", "-o", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["dead_share"], row["l0"]) for row in rows] == [("0.0", "7.9"), ("", "7.9")]
    run(["status"])
    head, *lines = (line.split() for line in capsys.readouterr().out.splitlines()[:3])
    assert [line[head.index("DEAD") - len(head)] for line in lines] == ["0.0%", "–"]
    assert [line[head.index("L0") - len(head)] for line in lines] == ["7.9", "7.9"]

    run(["show", str(measured)])
    assert DEAD not in capsys.readouterr().out
    run(["show", str(not_measured)])
    assert f"–: {DEAD}: a latent is dead after 10.0M silent tokens" in capsys.readouterr().out

    run(["show", str(measured), "--curve", "-o", "json"])
    shares = [one["dead_share"] for one in json.loads(capsys.readouterr().out)["items"]]
    assert shares == [None, None, 0.0, 0.0], "the window is half of the budget"
    record = read(engine, not_measured)
    assert {row.dead_share for row in record.points} == {None}
    assert "final_dead_share" not in record.final_values


def test_auxk_is_told_beside_what_predicting_nothing_scores(file: Path, engine: Engine, capsys: Capture) -> None:
    run(["enqueue", str(file)])
    finished(engine)
    capsys.readouterr()
    run(["show", "1", "--curve"])
    told = capsys.readouterr()
    head, *lines = (line.split() for line in told.out.splitlines())
    assert [line[head.index("AUX") - 1] for line in lines] == ["–", "–", "–", "0.8000"]  # FVU RAW is two words
    assert "1 where they predict nothing" in told.err


def test_learning_rates_are_not_compared_across_l0(engine: Engine) -> None:
    config = parse({"sae": {"n_latents": 256, "k": 8, "activation": "relu"}, "training": {"max_tokens": BUDGET}})
    queue.enqueue(engine, Sweep("relu", (config,)))
    lease = claim(engine).lease
    queue.begin(engine, lease, FACTS, 0)
    queue.record(engine, lease, [point(BUDGET, 0.1, l0=100.8)])
    queue.finish(engine, lease, result(outcome="max_tokens", tokens_seen=BUDGET))
    with pytest.raises(ConfigError, match=r"compared at one L0, and job 1 has another: .*L0 100\.8"):
        lr_search.propose(engine, lr_search.SearchScope(("relu",), (), ()))
