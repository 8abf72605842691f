"""`orch evaluate` and `orch results`, and what the other commands say of evaluations; also from Python."""

import csv
import io
import json
import os
from pathlib import Path

import pytest
from sqlalchemy import Engine

import orch
from orchestrator import queue, results
from orchestrator.cli.display.queue_view import Snapshot, screen
from orchestrator.cli.display.tables import _INVISIBLE
from orchestrator.cli.main import run
from orchestrator.errors import ConfigError
from orchestrator.settings import Settings
from orchestrator.sweep import expand_text
from orchestrator.sweep.written import sweep_text
from tests import evaluation_shorthand as shorthand
from tests.evaluation_shorthand import imported, record, score, take, train
from tests.queue_shorthand import enqueue, job
from tests.worker_shorthand import items

pytestmark = pytest.mark.databases("sqlite")

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def trained(engine: Engine) -> Engine:
    """Two SAEs of a sweep `s` whose third job waits, and two that were brought in, one of them a transcoder."""
    enqueue(engine, 3)
    train(engine)
    train(engine)
    queue.pause(engine, [3])
    imported(engine)
    imported(engine, "coder", target_hook_point="mlp")
    return engine


def measure(engine: Engine, fvu: float = 0.25) -> int:
    """Let the next evaluation find something of each family."""
    lease = take(engine).lease
    record(engine, lease, "reconstruction", score("fvu", fvu, std_error=0.01), score("fvu", 0.5, variant="first"))
    record(engine, lease, "downstream", score("delta_ce", 0.031, low=0.03, high=0.032, n=4096))
    queue.finish_evaluation(engine, lease, 2.0)
    return lease.job_id


def test_what_is_asked_for_is_queued_and_what_cannot_be_is_named(trained: Engine, capsys: Capture) -> None:
    assert run(["evaluate", "s", "sae:coder", "sae:scope", "--dry-run"]) == 0
    assert "would add 3 jobs" in capsys.readouterr().out
    assert shorthand.evaluations(trained) == []
    assert run(["evaluate", "s", "sae:coder", "sae:scope"]) == 0
    said = capsys.readouterr()
    assert said.out == "reconstruction, downstream: added 3 jobs (jobs 4, 5, 6)\n"
    assert "sae:coder cannot be evaluated: it is a transcoder" in said.err
    assert "1 job of these sweeps" in said.err
    assert run(["evaluate", "s", "1"]) == 0
    assert capsys.readouterr().out == "reconstruction, downstream: added 0 jobs, already there 2\n"
    assert run(["evaluate", "1", "--again", "-o", "name"]) == 0
    assert capsys.readouterr().out == "7\n"
    assert run(["evaluate", "s", "--where", "training.seed=1", "-o", "json"]) == 0
    (item,) = items(capsys)
    assert (item["label"], item["job_id"], item["is_new"]) == ("2", 5, False)


def test_the_paths_of_a_plan_are_read_from_its_file_or_from_here_and_looked_into(
    trained: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A worker runs in another folder: what it is sent is absolute, and is there."""
    here, files = tmp_path / "here", tmp_path / "files"
    for folder in (here, files):
        folder.mkdir()
    (here / "mine.txt").write_text("some words")
    (files / "beside.txt").write_text("some words")
    (files / "other").mkdir()
    (files / "plan.yaml").write_text("metrics: [structure]\nsource: beside.txt\nstructure: {against: [other]}\n")
    monkeypatch.chdir(here)
    assert run(["evaluate", "1", "--data", "mine.txt"]) == 0
    assert run(["evaluate", "1", "--config", "../files/plan.yaml"]) == 0
    mine, beside = (results.config(trained, number) for number in (4, 5))
    assert mine["data"]["source"] == str(here / "mine.txt")
    assert Path(beside["data"]["source"]).resolve() == files / "beside.txt"
    assert Path(beside["plan"]["structure"]["against"][0]).resolve() == files / "other"
    planned = expand_text("evaluate: {source: beside.txt}\nname: x\n", files / "x.yaml").evaluation
    assert planned is not None
    assert planned.source == str(files / "beside.txt")
    capsys.readouterr()
    assert run(["evaluate", "1", "--data", "missing.txt"]) == 2
    assert "there is no text missing.txt" in capsys.readouterr().err
    (files / "plan.yaml").write_text("structure: {against: [gone]}\n")
    assert run(["evaluate", "1", "--config", "../files/plan.yaml"]) == 3
    assert "structure.against: there is no sweep 'gone'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"structure\.against: there is no gone"):
        expand_text("evaluate: {structure: {against: [gone]}}\nname: x\n", files / "x.yaml")


def test_saes_to_compare_with_are_named_as_all_saes_are(trained: Engine, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("metrics: [structure]\nstructure: {against: ['2']}\n")
    assert run(["evaluate", "1", "--config", str(plan)]) == 0
    (against,) = results.config(trained, 4)["plan"]["structure"]["against"]
    label, _, folder = against.partition("=")
    assert (label, Path(folder).is_absolute()) == ("2", True)


def test_words_about_an_evaluation_are_of_an_evaluation(trained: Engine, tmp_path: Path, capsys: Capture) -> None:
    assert run(["evaluate", "1", "--metrics", ""]) == 2
    assert "'' is no metric family" in capsys.readouterr().err
    (tmp_path / "plan.yaml").write_text("metrics: downstream")
    assert run(["evaluate", "1", "--config", str(tmp_path / "plan.yaml")]) == 2
    assert "metrics: Input should be a list (got 'downstream')" in " ".join(capsys.readouterr().err.split())
    assert run(["config", "schema", "--evaluation"]) == 0
    assert "default python:stdlib\n" in capsys.readouterr().out
    assert run(["evaluate", "1", "2"]) == 0
    done = measure(trained)
    queue.fail(trained, take(trained).lease, error="no more", exit_code=1, outcome="failed", retry=False)
    capsys.readouterr()
    assert run(["explain", str(done)]) == 0
    assert "orch results" in capsys.readouterr().out
    assert run(["explain", str(done + 1)]) == 0
    assert capsys.readouterr().out.endswith(
        f"What is measured stays, and is not measured again.\nTo try again: orch retry {done + 1}\n"
    )
    assert run(["delete", str(done)]) == 2
    assert "Delete 1 job (1 succeeded): the scores of 1 evaluation?" in capsys.readouterr().err
    assert run(["delete", "1", str(done)]) == 2
    said = capsys.readouterr().err
    assert "1 trained SAE with all scores, " in said
    assert ", the scores of 1 evaluation?" in said


def test_options_go_before_the_file(trained: Engine, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("metrics: [probes]\ntokens: 8k\nseed: 3\n")
    assert run(["evaluate", "1", "--config", str(file)]) == 0
    assert run(["evaluate", "1", "--config", str(file), "--metrics", "n2g, structure", "--tokens", "16_384"]) == 0
    plans = [results.config(trained, number)["plan"] for number in (4, 5)]
    assert [(plan["metrics"], plan["tokens"], plan["seed"]) for plan in plans] == [
        (["probes"], 8000, 3),
        (["n2g", "structure"], 16_384, 3),
    ]
    assert (job(trained, 4).max_tokens, job(trained, 4).seed) == (8000, 3)
    assert run(["evaluate", "1", "--data", "python:stdlib"]) == 0
    assert results.config(trained, 6)["data"]["source"] == "python:stdlib"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["s", "--metrics", "downstrem"], 2, "'downstrem' is no metric family; did you mean 'downstream'?"),
        (["s", "--where", "sae.kk=8"], 2, "did you mean 'sae.k'?"),
        (["s", "--where", "sae.k=9"], 3, "none of these SAEs is of such a config"),
        (["ss"], 3, "there is no sweep 'ss'; did you mean 's'?"),
        (["3"], 3, "job 3 has no SAE"),
        (["sae:scop"], 3, "did you mean sae:scope?"),
        (["sae:coder"], 1, "sae:coder cannot be evaluated: it is a transcoder"),
        (["s", "--tokens", "many"], 2, "'many' is no number of tokens"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_is_wrong_is_said(trained: Engine, capsys: Capture, arguments: list[str], code: int, said: str) -> None:
    assert run(["evaluate", *arguments]) == code
    assert said in capsys.readouterr().err
    assert shorthand.evaluations(trained) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("metrics: [probs]", "plan.yaml: 'probs' is no metric family; did you mean 'probes'?"),
        ("tokns: 5", "plan.yaml: unknown key 'tokns'; did you mean 'tokens'?"),
        ("metrics: [n2g, n2g]", "metrics names each family once"),
        ("tokens: -1", "tokens: Input should be greater than 0 (got -1)"),
        ("a text", "takes a list of metric families, or a mapping of keys"),
    ],
)
def test_a_file_that_is_wrong(trained: Engine, tmp_path: Path, capsys: Capture, text: str, said: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    assert run(["evaluate", "1", "--config", str(file)]) == 2
    assert said in capsys.readouterr().err


def test_scores_are_shown_by_sae_the_newest_of_each(trained: Engine, capsys: Capture) -> None:
    assert run(["results"]) == 0
    assert "Nothing has been measured" in capsys.readouterr().err
    run(["evaluate", "s"])
    run(["evaluate", "1", "--again"])
    for fvu in (0.5, 0.25, 0.125):
        measure(trained, fvu)
    capsys.readouterr()
    assert run(["results", "s"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["SAE", "SWEEP", "PLACE", "N", "K", "L0", "FVU", "DELTA_CE", "TOKENS"]
    assert "0.1250 ±0.01" in first
    assert "0.0310 [0.0300, 0.0320]" in first
    assert "0.2500 ±0.01" in second
    assert run(["results", "1", "-o", "csv", "--variants"]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["sae"], row["fvu"], row["fvu_std_error"], row["fvu[first]"], row["delta_ce_low"]) == (
        "1",
        "0.125",
        "0.01",
        "0.5",
        "0.03",
    )
    assert run(["results", "--metrics", "downstream", "--long", "-o", "json"]) == 0
    found = items(capsys)
    assert [(one["sae"], one["metric"], one["n"], one["job_id"]) for one in found] == [
        ("1", "delta_ce", 4096, 6),
        ("2", "delta_ce", 4096, 5),
    ]
    assert run(["results", "--metrics", "fvuu"]) == 3
    assert "there is no score 'fvuu'; did you mean 'fvu'?" in capsys.readouterr().err
    assert run(["results", "--long"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 7
    queue.hide_jobs(trained, [6])
    run(["results", "1", "-o", "csv"])
    assert "0.5,0.01" in capsys.readouterr().out, "that of the job before is the newest shown"


def test_other_commands_say_what_an_evaluation_is(trained: Engine, capsys: Capture) -> None:
    run(["evaluate", "s", "--metrics", "reconstruction,downstream"])
    measure(trained)
    lease = take(trained).lease
    queue.record_failed_family(trained, lease, "downstream", "no text")
    record(trained, lease, "reconstruction")
    queue.finish_evaluation(trained, lease, 1.0)
    capsys.readouterr()
    assert run(["status", "s"]) == 0
    said = capsys.readouterr()
    assert [line.split()[0] for line in said.out.splitlines() if line[:2].strip().isdigit()] == [
        "1",
        "2",
        "3",
        "4",
        "5",
    ]
    assert "reconstruction, downstream  failed" in said.out
    assert "evaluations: ✗ 1 failed  ✓ 1 succeeded" in said.err
    assert run(["status"]) == 0
    assert "reconstruction" not in capsys.readouterr().out
    assert run(["status", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert ([one["id"] for one in told["items"]], [one["id"] for one in told["evaluations"]]) == ([1, 2, 3], [4, 5])
    for options, ids in {
        ("-s", "failed"): ([], [5]), ("-s", "paused"): ([3], []), ("-s", "succeeded"): ([1, 2], [4]),
        ("--limit", "1"): ([3], [4]), ("--where", "training.seed=0"): ([1], []), ("--label", "a=b"): ([], []),
    }.items():  # fmt: skip
        assert run(["status", "-o", "json", *options]) == 0
        told = json.loads(capsys.readouterr().out)
        assert tuple([one["id"] for one in told[name]] for name in ("items", "evaluations")) == ids, options
    assert run(["show", "5"]) == 0
    shown = capsys.readouterr().out
    assert "downstream      failed" in shown
    assert "no text" in shown
    for part in ("--attempts", "--events", "--config", "--curve", "--checkpoints"):
        assert run(["show", "5", part]) == 0
    assert run(["explain", "4"]) == 0
    assert "All that it was to measure is measured" in capsys.readouterr().out
    assert run(["explain", "5"]) == 0
    assert "What is measured stays" in capsys.readouterr().out
    assert run(["wait", "4"]) == 0
    assert run(["wait", "5"]) == 7
    assert run(["extend", "4", "--max-tokens", "1B"]) == 4
    assert run(["retry", "5"]) == 0
    assert run(["explain", "5"]) == 0
    assert run(["pause", "5"]) == 0
    assert run(["reprioritise", "5", "--priority", "7"]) == 0
    assert run(["resume", "5"]) == 0
    assert run(["cancel", "5"]) == 0
    assert run(["hide", "5"]) == 0
    assert run(["delete", "4", "5", "-y"]) == 0
    assert [row.counts["succeeded"] for row in results.sweeps(trained)] == [2]
    capsys.readouterr()
    assert run(["results"]) == 0
    assert "Nothing has been measured" in capsys.readouterr().err


def test_counts_and_figures_keep_kinds_apart(trained: Engine, capsys: Capture) -> None:
    run(["evaluate", "s"])
    measure(trained)
    take(trained)
    assert results.counts(trained)["succeeded"] == 2
    assert results.counts(trained, kind="evaluate") | {"running": 1, "succeeded": 1} == results.counts(
        trained, sweep="s", kind="evaluate"
    )
    (found,) = results.sweeps(trained)
    assert (found.jobs, found.evaluations["running"], found.evaluations["succeeded"]) == (3, 1, 1)
    stats = results.stats(trained)
    assert (stats.jobs["succeeded"], stats.evaluations["succeeded"], stats.tokens_trained) == (2, 1, 200)
    assert (stats.attempts["results"], stats.attempts["evaluations"], stats.attempts["failures"]) == (2, 1, 0)
    capsys.readouterr()
    assert run(["metrics"]) == 0
    said = capsys.readouterr().out
    assert 'orch_evaluations{state="running"} 1\n' in said
    assert 'orch_jobs{state="running"} 0\n' in said
    assert "orch_evaluated_total 1\n" in said
    assert [row.job_id for row in results.measured(trained, ["s"])] == [1, 2, 3]
    assert [row.id for row in results.jobs(trained)] == [1, 2, 3]
    assert run(["queue", "stats"]) == 0


def test_the_live_view_counts_evaluations_below_the_jobs(trained: Engine) -> None:
    run(["evaluate", "s"])
    rows, counts = results.jobs(trained), results.counts(trained, kind="evaluate")
    drawn = screen(Snapshot(rows, evaluations=counts), size=os.terminal_size((100, 20)), title="s", clock="")
    lines = [_INVISIBLE.sub("", line) for line in drawn]
    assert "evaluations: ○ 2 queued" in lines[-1]
    assert "2 queued" not in lines[0]


SWEEP = """
version: 1
name: small
overrides: {subject.layer: 3, training.max_tokens: 65536, training.first_point_tokens: 8192, sae.n_latents: 256}
"""


def test_a_sweep_file_says_what_is_measured(engine: Engine, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP + "evaluate: [downstream, probes]\n")
    assert run(["enqueue", str(file), "--dry-run"]) == 0
    assert "evaluates each SAE once it is trained: downstream, probes\n" in capsys.readouterr().out
    assert run(["enqueue", str(file)]) == 0
    train(engine)
    assert results.config(engine, 2)["plan"]["metrics"] == ["downstream", "probes"]
    file.write_text(SWEEP + "evaluate: {metrics: [n2g], tokens: 8k, seed: 2}\n")
    capsys.readouterr()
    assert run(["enqueue", str(file)]) == 0
    assert "n2g; of SAEs trained already: job 3" in capsys.readouterr().out
    assert run(["enqueue", str(file), "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["evaluate"]["tokens"], told["evaluations"], told["skipped"]) == (8000, [], 1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evaluate: [downstrem]", ":5:11: evaluate: 'downstrem' is no metric family; did you mean 'downstream'?"),
        ("evaluate: {metric: [probes]}", "evaluate: unknown key 'metric'; did you mean 'metrics'?"),
        ("evaluate: downstream", "evaluate: takes a list of metric families"),
        ("evaluate: []", "metrics names each family once, and at least one"),
    ],
)
def test_a_sweep_file_that_is_wrong(settings: Settings, tmp_path: Path, capsys: Capture, line: str, said: str) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SWEEP + line + "\n")
    assert run(["enqueue", str(file)]) == 2
    assert said in capsys.readouterr().err


def test_a_written_sweep_keeps_what_is_measured(tmp_path: Path) -> None:
    sweep = expand_text(SWEEP + "evaluate: {metrics: [n2g], tokens: 8k}\n", tmp_path / "a.yaml")
    assert expand_text(sweep_text(sweep), tmp_path / "b.yaml").evaluation == sweep.evaluation
    assert sweep.evaluation is not None


def test_every_key_of_a_plan_is_explained(capsys: Capture) -> None:
    assert run(["config", "schema", "--evaluation"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("metrics", "tokens", "probes", "downstream"))
    assert run(["config", "schema", "--evaluation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "EvaluationPlan"


def test_from_python(trained: Engine, settings: Settings) -> None:
    with orch.open(home=settings.home) as study:
        with pytest.warns(UserWarning, match="sae:coder cannot be evaluated"):
            assert study.evaluate("s", "sae:coder", metrics=["reconstruction", "downstream"]) == [4, 5]
        assert study.evaluate("s", where={"training.seed": 1}) == [5]
        assert study.scores().empty
        measure(trained)
        measure(trained)
        assert list(study.wait(4, 5)["state"]) == ["succeeded", "succeeded"]
        found = study.scores("s", metrics=["delta_ce"])
        assert study.scores("s", metrics="delta_ce").equals(found), "one name is a list of itself"
        assert list(zip(found["sae"], found["value"], found["low"], strict=True)) == [
            ("1", 0.031, 0.03),
            ("2", 0.031, 0.03),
        ]
        assert list(study.scores("1", long=False)["fvu"]) == [0.25]
        assert list(study.jobs()["id"]) == [1, 2, 3]
