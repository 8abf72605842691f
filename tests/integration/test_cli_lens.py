"""`orch lens`, and what the other commands say of lens jobs."""

import json
import re
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator import lenses, queue, results
from orchestrator.cli.main import run
from tests.evaluation_shorthand import evaluate, imported
from tests.lens_shorthand import SHA256, begin_lens, lens_point, queue_lens, take_lens, train_lens
from tests.queue_shorthand import enqueue
from tests.small_world import make_subject

pytestmark = pytest.mark.databases("sqlite")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("a subject"))


def said(capsys: Capture, *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run([*arguments]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_a_lens_is_asked_for_by_options_and_a_file(
    engine: Engine, subject: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lens.yaml"
    file.write_text("data: {context_length: 32, source: text.txt}\ntraining: {max_tokens: 2M, batch_tokens: 64}\n")
    monkeypatch.chdir(subject)
    asked = ["lens", "train", ".", "--config", str(file), "--lr", "0.01", "--seed", "3", "--name", "mine"]
    assert "would add 1 job" in said(capsys, *asked, "--dry-run")
    assert results.jobs(engine, kind="lens") == []
    assert "added job 1" in said(capsys, *asked, "--tokens", "1M")
    config = results.config(engine, 1)
    assert (config["subject"]["model"], config["data"]["source"]) == (str(subject), str(subject / "text.txt"))
    assert (config["optimizer"]["lr"], config["data"]["seed"]) == (0.01, 3)
    assert (config["training"]["max_tokens"], config["training"]["batch_tokens"]) == (1_000_000, 64)
    assert "already there, job 1" in said(capsys, *asked, "--tokens", "1M")
    assert said(capsys, *asked[:5], "--again", "-o", "name").strip() == "2"


def test_kls_of_one_layer_stand_one_under_the_other(engine: Engine, capsys: Capture) -> None:
    queue_lens(engine)
    lease = take_lens(engine).lease
    begin_lens(engine, lease)
    queue.record(engine, lease, [lens_point(2048, 12.345678), lens_point(4096, 0.5), lens_point(8192, 0.0004)])
    head, *lines = said(capsys, "show", "1", "--curve").splitlines()
    ends = [[word.end() for word in re.finditer(r"\S+", line)] for line in lines]
    assert len(ends) == 3
    assert ends[0] == ends[1] == ends[2], lines
    assert "BY LAYER" in head


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no language model is named: give SUBJECT"),
        (["{subject}", "--batch-tokens", "100"], "not a whole number of contexts of 128"),
        (["{subject}"], "data.context_length = 128: the model reads 32 at most"),
        (["./nowhere"], "subject.model: there is no ./nowhere"),
        (["{subject}", "--data", "/no/text.txt"], "data.source: there is no /no/text.txt"),
        (["synthetic:gaussian?d_model=8"], "is no language model"),
        (["{subject}", "--config", "{subject}/none.yaml"], "none.yaml"),
        (["{subject}", "--lr", "-1"], "optimizer.lr: Input should be greater than 0"),
        (["{subject}", "--tokens", "many"], "is no number of tokens"),
    ],
)
def test_what_cannot_be_asked_for(
    arguments: list[str], message: str, engine: Engine, subject: Path, capsys: Capture
) -> None:
    given = [one.replace("{subject}", str(subject)) for one in arguments]
    assert message in said(capsys, "lens", "train", *given, code=2)
    assert results.jobs(engine, kind="lens") == []


def test_lenses_are_listed_and_shown_layer_by_layer(engine: Engine, capsys: Capture) -> None:
    assert "There is no lens yet" in said(capsys, "lens", "list")
    queue_lens(engine, name="mine")
    train_lens(engine)
    waiting = queue_lens(engine, heldout_tokens=512)
    listed = said(capsys, "lens", "list").splitlines()
    assert listed[0].split()[:6] == ["LENS", "JOB", "MODEL", "LAYERS", "KL", "LOGIT"]
    assert listed[1].split() == ["mine", "1", "shipped:stdlib-gpt2", "3", "0.25", "2", "5", "4.10k", "converged"]
    assert listed[2].split()[-1] == "queued"
    assert said(capsys, "lens", "list", "-o", "name").split() == ["mine", str(waiting)]
    (one, _) = json.loads(said(capsys, "lens", "list", "-o", "json"))["items"]
    assert (one["name"], one["kls"], one["sha256"]) == ("mine", [0.375, 0.125, 0.0], SHA256)
    assert "mine,1,1," in said(capsys, "lens", "list", "-o", "csv").splitlines()[1]
    shown = said(capsys, "lens", "show", "mine")
    assert "4.10k held-out tokens of a text" in shown
    rows = [line.split() for line in shown.splitlines()]
    for row in (["0", "0.375", "3", "5"], ["1", "0.125", "1", "2"], ["2", "0", "0", "1"]):
        assert row in rows
    assert f"there is no lens '{'9' * 20}'" in said(capsys, "lens", "show", "9" * 20, code=3)
    assert "there is no lens 'nine'; did you mean mine?" in said(capsys, "lens", "show", "nine", code=3)
    assert json.loads(said(capsys, "lens", "show", SHA256, "-o", "json"))["items"][0]["conditions"] == [5.0, 2.0, 1.0]


def test_a_lens_in_training_is_shown_as_far_as_it_is(engine: Engine, capsys: Capture) -> None:
    job_id = queue_lens(engine, name="mine")
    lease = take_lens(engine).lease
    assert said(capsys, "lens", "list").splitlines()[1].split()[3] == "–", "no attempt has read the model yet"
    begin_lens(engine, lease)
    begun = said(capsys, "lens", "list").splitlines()[1].split()
    assert begun[3:] == ["3", "–", "2", "–", "–", "running"], "layers and the logit lens are known before any step"
    queue.record(engine, lease, [lens_point(2048), lens_point(4096, 0.25)])
    for arguments in (["lens", "list"], ["status", str(job_id)]):
        row = next(line for line in said(capsys, *arguments).splitlines() if line.startswith("mine")).split()
        assert row[3:] == ["3", "0.25", "2", "–", "4.10k", "of", "20.0M", "running"]
    (item,) = json.loads(said(capsys, "lens", "list", "-o", "json"))["items"]
    assert (item["tokens_seen"], item["kls"], item["max_tokens"]) == (4096, [0.375, 0.125, 0.0], 20_000_000)
    assert (item["n_layers"], item["d_model"], item["fingerprint"]) == (3, 16, "f" * 64)
    assert json.loads(said(capsys, "show", str(job_id), "-o", "json"))["items"][0]["lens"] == item
    shown = said(capsys, "lens", "show", "mine")
    assert "4.10k of 20.0M tokens" in shown
    assert "4.10k held-out tokens of a text" in shown
    assert [line.split() for line in shown.splitlines() if line.split()[:1] == ["1"]] == [["1", "0.125", "1", "–"]]
    queue.release(engine, lease)
    take_lens(engine)
    assert said(capsys, "lens", "list").splitlines()[1].split()[3] == "3", "an attempt that has read nothing knows less"


def test_a_lens_that_diverged_is_shown_with_what_it_came_to_and_what_to_do(engine: Engine, capsys: Capture) -> None:
    queue_lens(engine, name="mine")
    train_lens(engine, outcome="diverged", uri=None, sha256=None, conditions=None)
    shown = said(capsys, "lens", "show", "mine")
    assert "none was kept: its KL rose, or was not finite; train it with a lower --lr" in shown
    assert "4.10k tokens in 2s" in shown
    assert [line.split() for line in shown.splitlines() if line.split()[:1] == ["1"]] == [["1", "0.125", "1", "–"]]
    assert "sha256" not in shown
    assert "T(1%)" not in shown


def test_the_status_of_other_jobs_does_not_count_those_that_train_saes(engine: Engine, capsys: Capture) -> None:
    """It began with: 0 of 2 jobs shown."""
    trained = enqueue(engine, 2)
    lens = queue_lens(engine, name="mine")
    (evaluation,) = evaluate(engine, imported(engine))
    for selectors in (["lenses"], [str(lens)], ["evaluations"], [str(evaluation)], ["lenses", "evaluations"]):
        told = said(capsys, "status", *selectors)
        assert "jobs shown" not in told
        assert "2 queued" not in told
        assert "0 workers at work, polling" in told.splitlines()[-3:][0]
        assert "mine" in told or "lenses" not in selectors
    queued = "○ 2 queued  ·  0 workers at work, polling"
    assert f"1 of 2 jobs shown · {queued}" in said(capsys, "status", "lenses", str(trained[0]))
    assert f"0 of 2 jobs shown · {queued}" in said(capsys, "status", "s", "--state", "failed")
    assert queued in said(capsys, "status").splitlines(), "all are shown"


def test_the_other_commands_know_the_kind(engine: Engine, capsys: Capture) -> None:
    queue_lens(engine, name="mine")
    assert "lenses: ○ 1 queued" in said(capsys, "status")
    assert "It is trained in a process of its own." in said(capsys, "explain", "1")
    lease = take_lens(engine).lease
    begin_lens(engine, lease)
    from orchestrator import queue

    queue.record(engine, lease, [lens_point(1024), lens_point(2048, 0.25)])
    assert "The lens" not in said(capsys, "explain", "1")
    curve = said(capsys, "show", "1", "--curve").splitlines()
    assert curve[1].split()[:5] == ["1.02k", "0.5", "0.75", "0.25", "0"]
    queue.release(engine, lease)
    train_lens(engine)
    assert "At three evaluations in a row" in (told := said(capsys, "explain", "1"))
    assert "orch lens show mine" in told
    shown = said(capsys, "show", "1")
    assert "all layers 0" not in shown, "no attempt has told which layers those are"
    assert "4.10k of 20.0M tokens" in shown
    (item,) = json.loads(said(capsys, "show", "1", "-o", "json"))["items"]
    assert (item["kind"], item["lens"]["kl"]) == ("lens", 0.25)
    assert "lenses" in said(capsys, "queue", "stats")
    for selector in ("1", "lenses"):
        assert "LOGIT LENS" in (named := said(capsys, "status", selector))
        assert "mine" in named
    assert "mine" not in said(capsys, "status", "1", "--state", "queued")
    assert "mine" not in said(capsys, "status")
    assert 'orch_lenses{state="succeeded"} 1' in said(capsys, "metrics")
    assert "first_point_tokens" in said(capsys, "config", "schema", "--lens")
    assert "trained by job 1" in said(capsys, "lens", "remove", "mine", "-y", code=4)
    (sae,) = enqueue(engine)
    assert "2 jobs (1 succeeded, 1 queued): " in (goes := said(capsys, "delete", "1", str(sae), "-y")) or goes
    assert lenses.entries(engine) == []
