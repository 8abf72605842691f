"""Which jobs `orch status` shows, in which order and columns."""

import csv
import io
import json

import click
import pytest
from sqlalchemy import Engine

from orchestrator import queue, results
from orchestrator.cli.display.columns import job_columns
from orchestrator.cli.display.tables import table, visible
from orchestrator.cli.main import run
from orchestrator.config.validation import parse
from orchestrator.sweep.sweep import Sweep
from tests.queue_shorthand import claim, point, result

pytestmark = pytest.mark.databases("sqlite")

RATES, SIZES = (0.001, 0.002, 0.004), (64, 128)


@pytest.fixture(autouse=True)
def _study(engine: Engine) -> None:
    """Six jobs over n and lr, whose fvu is lowest at the middle rate; and one of another sweep."""
    configs = [parse({"sae": {"n_latents": n, "k": 8}, "optimizer": {"lr": lr}}) for n in SIZES for lr in RATES]
    queue.enqueue(engine, Sweep("study", tuple(configs), labels={"project": "x"}))
    queue.enqueue(engine, Sweep("other", (parse({"sae": {"n_latents": 64, "k": 4}}),)))
    for config in configs[:-1]:
        lease = claim(engine).lease
        off = 0.1 if config.optimizer.lr != RATES[1] else 0.0
        queue.record(engine, lease, [point(100, 0.3 + off + 1 / (config.sae.n_latents or 1))])
        queue.finish(engine, lease, result(outcome="max_tokens"))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert run(["status", *arguments]) == 0
    return capsys.readouterr().out


def ids(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[int]:
    return [int(line) for line in said(capsys, "-o", "name", *arguments).splitlines()]


def test_each_swept_key_has_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(said(capsys, "study", "-o", "csv"))))
    assert [float(row["optimizer.lr"]) for row in rows] == [*RATES, *RATES]
    items = json.loads(said(capsys, "-o", "json"))["items"]
    assert [item["optimizer.lr"] for item in items] == [*RATES, *RATES, None]
    assert items[0]["swept"] == {"optimizer.lr": RATES[0]}


def test_where_label_sort_and_best_by(capsys: pytest.CaptureFixture[str]) -> None:
    assert ids(capsys, "--where", "optimizer.lr=0.001,0.002", "--where", "sae.n_latents=64") == [1, 2]
    assert ids(capsys, "--where", "sae.k=4") == [7]
    assert ids(capsys, "--label", "project=x") == [1, 2, 3, 4, 5, 6]
    assert ids(capsys, "--label", "project=y") == []
    assert ids(capsys, "study", "--sort", "fvu")[:2] == [5, 2]
    assert ids(capsys, "study", "--sort", "-optimizer.lr")[:2] == [3, 6]
    assert ids(capsys, "study", "--sort", "fvu")[-1] == 6, "what is missing comes last"
    assert ids(capsys, "study", "--best-by", "n,k") == [2, 5]
    assert ids(capsys, "--best-by", "sae.n_latents", "--sort", "-fvu", "--limit", "1") == [2]


def test_nothing_is_the_best_of_jobs_of_another_sparsity(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """A ReLU SAE with L0 = 100.8 was the lowest fvu of those with k = 8."""
    relu = [parse({"sae": {"n_latents": 64, "activation": "relu", "sparsity_coef": c}}) for c in (1e-3, 1e-4, 2e-4)]
    queue.enqueue(engine, Sweep("relu", tuple(relu)))
    queue.cancel(engine, [6, 7])
    for fvu, l0 in ((0.3, 8.0), (0.1, 100.8), (0.09, 103.0)):
        lease = claim(engine).lease
        queue.record(engine, lease, [point(100, fvu, l0=l0)])
        queue.finish(engine, lease, result(outcome="max_tokens"))
    assert ids(capsys, "relu", "--best-by", "n") == [8, 10]


def test_columns_are_those_that_were_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    head, first, *_ = said(capsys, "study", "--columns", "id,n,optimizer.lr,fvu").splitlines()
    assert head.split() == ["id", "n", "optimizer.lr", "fvu"]
    assert first.split() == ["1", "64", "0.001", "0.415625"]
    assert said(capsys, "study", "--columns", "id,sae.k,n", "-o", "csv").splitlines()[:2] == ["id,sae.k,n", "1,8,64"]


def test_an_unknown_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--sort", "--best-by", "--columns"):
        assert run(["status", option, "optimizer.l"]) == 2
        assert "did you mean 'optimizer.lr'?" in capsys.readouterr().err
    assert run(["status", "--where", "fvu=1"]) == 2
    assert "not a key of a config" in capsys.readouterr().err


def test_a_key_given_twice_is_refused_unless_both_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """The last one was taken alone."""
    for option, first, second in (("--where", "sae.k=4", "sae.k=8"), ("--label", "project=y", "project=x")):
        assert run(["status", option, first, option, second]) == 2
        assert f"{option} {first.partition('=')[0]} is given twice" in capsys.readouterr().err
    assert run(["evaluate", "study", "--where", "sae.k=4", "--where", "sae.k=8"]) == 2
    assert "Several values go into one --where: sae.k=4,8" in capsys.readouterr().err
    assert ids(capsys, "--where", "sae.k=4,8") == [1, 2, 3, 4, 5, 6, 7]
    assert ids(capsys, "--where", "sae.k=4", "--where", "sae.k=4") == [7]
    assert ids(capsys, "--label", "project=x", "--label", "project = x") == [1, 2, 3, 4, 5, 6]


def test_swept_is_there_for_one_job_and_at_any_width(engine: Engine) -> None:
    (row,) = results.jobs(engine, ids=[2])
    assert row.swept == {"optimizer.lr": 0.002}
    rows = results.jobs(engine, sweep="study")
    for width in (60, 80, 120):
        lines = [click.unstyle(line) for line in table(rows, job_columns(rows, drawn=False), width=width)]
        assert max(map(visible, lines)) <= width
        assert "SWEPT" in lines[0]
        assert "lr=0.001" in lines[1]
        assert "FVU" in lines[0]
