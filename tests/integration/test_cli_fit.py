"""`orch fit` from the database to the printed law, and what it says where there is none."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from orchestrator import queue, results
from orchestrator.cli.main import run
from orchestrator.config.validation import parse
from orchestrator.database.schema import open_database
from orchestrator.fits import store
from orchestrator.settings import Settings
from orchestrator.sweep.sweep import Sweep
from tests.queue_shorthand import claim, enqueue, fail, point, ref, result
from tests.worker_shorthand import let_commands_reach

pytestmark = pytest.mark.databases("sqlite")  # what is computed and drawn does not depend on it
on_both = pytest.mark.databases("sqlite", "postgresql")

Capture = pytest.CaptureFixture[str]
SIZES = (64, 128, 256, 512, 1024, 2048)


@pytest.fixture
def engine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    let_commands_reach(settings, monkeypatch)
    monkeypatch.setattr(
        "orchestrator.cli.commands.fit_command.ship", lambda _: None
    )  # seconds each; it has its own tests
    engine = open_database(settings)
    yield engine
    engine.dispose()


def _law(n: int, k: int) -> float:
    return math.exp(0.3 - 0.3 * math.log(n)) + 0.3 / math.sqrt(k)


def _job(engine: Engine, *, n: int, k: int = 8, name: str = "s", layer: int = 3, outcome: str = "converged",
         points: tuple[float, ...] | None = None, seed: int = 0) -> int:  # fmt: skip
    """Let a job be enqueued and end, and return its id; its curve falls to the law."""
    values: dict[str, Any] = {"subject": {"layer": layer}, "sae": {"n_latents": n, "k": k}, "training": {"seed": seed}}
    [job_id] = queue.enqueue(engine, Sweep(name, (parse(values),))).job_ids
    lease = claim(engine).lease
    facts = {"lr": 0.1 / n**0.5, "n_latents": n, "d_model": 128, "threads": 1, "device": "cpu",
             "subject": {"parameters_run": 1000, "site": f"resid_post of h.{layer}"}}  # fmt: skip
    queue.begin(engine, lease, facts, 0)
    tokens = [int(100 * n * 2 ** (at / 4)) for at in range(33)]
    falling = points if points is not None else tuple(_law(n, k) * (1 + 40 * n / t) for t in tokens)
    queue.record(
        engine,
        lease,
        [
            point(t, fvu, l0=k, flops_dense=12.0 * n * 128 * t, flops_executed=2.0 * n * 128 * t)
            for t, fvu in zip(tokens, falling, strict=False)
        ],
    )
    if outcome == "max_tokens":
        queue.checkpointed(engine, lease, ref(tokens[-1]))
    queue.finish(engine, lease, result(outcome=outcome, tokens_seen=tokens[-1]))
    assert job_id is not None
    return job_id


def _grid(engine: Engine, *, ks: tuple[int, ...] = (8,), **values: Any) -> list[int]:
    return [_job(engine, n=n, k=k, **values) for n in SIZES for k in ks]


def _fit(*arguments: str) -> int:
    return run(["fit", "--bootstrap", "200", *arguments])


@on_both
def test_every_law_the_jobs_allow(engine: Engine, capsys: Capture) -> None:
    _grid(engine, ks=(8, 32))
    assert _fit("s") == 0
    said = capsys.readouterr()
    for words in ("L(N)  k=8", "L(N)  k=32", "L(C)  k=8", "L(N,K)  shipped:stdlib-gpt2", "T(N)  k=32"):
        assert words in said.out
    for words in ("fvu = exp(a + b·ln n) + e   form +e", "90% INTERVAL", "AICC", "90% profile interval",
                  "left out none", "off at the largest n (job", "Without an irreducible term b would be",
                  "OFF BY"):  # fmt: skip
        assert words in said.out
    assert "Not fitted: lr*(N) (k=8; k=32) needs 3 sizes or more" in said.err
    assert "Not fitted: L_s(N) (k=8; k=32) needs converged jobs of 2 subjects" in said.err
    assert {one.fit.law for one in store.newest(engine, sweep="s")} == {"ln", "lc", "lnk", "tn"}


def test_one_law_as_json(engine: Engine, capsys: Capture) -> None:
    jobs = _grid(engine)
    assert _fit("s", "--law", "ln", "-o", "json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["schema"], said["refused"]) == ("orch.fit/1", [])
    [found] = said["items"]
    assert (found["law"], found["group"], found["form"], found["jobs"]) == ("ln", "k=8", "+e", jobs)
    assert found["coefficients"]["b"]["value"] == pytest.approx(-0.3, abs=0.02)
    assert set(found["coefficients"]["e"]) == {"value", "low", "high", "median"}
    assert found["holdout_jobs"] == jobs[-1:]
    assert found["id"] == store.newest(engine, sweep="s")[0].id
    assert [one["form"] for one in found["scores"]] == ["pure", "+e"]
    assert "draws" not in found


@on_both
def test_a_fit_supersedes_the_last(engine: Engine, capsys: Capture) -> None:
    _grid(engine)
    for _ in range(2):
        assert _fit("s", "-l", "ln", "-l", "tn") == 0
    assert len(store.newest(engine, sweep="s")) == 2
    assert len(store.history(engine, sweep="s")) == 4
    assert _fit("s", "-l", "ln", "--no-store") == 0
    assert "not stored" in capsys.readouterr().out
    assert len(store.history(engine, sweep="s")) == 4


def test_options_reach_the_fit(engine: Engine, capsys: Capture) -> None:
    _grid(engine)
    assert _fit("s", "-l", "ln", "--loss", "l_inf", "--seed", "7") == 0
    assert "k=8, loss=l_inf" in capsys.readouterr().out
    [kept] = store.newest(engine, sweep="s")
    assert (kept.fit.options["seed"], kept.fit.options["loss"]) == (7, "l_inf")
    assert _fit("s", "-l", "lc", "--flops", "executed") == 0
    assert "FLOPs the SAE executed" in capsys.readouterr().out
    assert _fit("s", "-l", "tn", "--epsilon", "0.02") == 0
    assert "k=8, epsilon=0.02" in capsys.readouterr().out


def test_jobs_left_out_are_listed_with_the_reason(engine: Engine, capsys: Capture) -> None:
    _grid(engine)
    dead = _job(engine, n=4096, points=(1.3, 1.2, 1.1))
    diverged = _job(engine, n=4096, outcome="diverged", seed=1)
    nan = _job(engine, n=4096, points=(0.5, 0.4, math.nan), seed=2)
    bare = _job(engine, n=4096, points=(), seed=3)
    short = _job(engine, n=4096, outcome="max_tokens", seed=4)
    waiting = enqueue(engine, name="s")[0]
    failed = enqueue(engine, name="s", start=9)[0]
    fail(engine, claim(engine).lease, retry=False)
    assert _fit("s", "-l", "ln") == 0
    out = capsys.readouterr().out
    assert "used 6 jobs, left out 7:" in out
    for why, job in (("a dead SAE: fvu 1.1 is no better than the mean", dead), ("it diverged", diverged),
                     ("its last loss is not a number", nan), ("no curve is stored of it", bare),
                     ("not converged: it reached its budget", short)):  # fmt: skip
        assert any(why in line and line.endswith(f"job {job}") for line in out.splitlines()), why
    assert any("it has not ended" in line and str(max(waiting, failed)) in line for line in out.splitlines())
    assert "it failed" in out


def test_a_wrong_law(engine: Engine, capsys: Capture) -> None:
    assert _fit("s", "--law", "lnn") == 2
    said = capsys.readouterr().err
    assert "there is no law 'lnn'; did you mean 'ln" in said
    assert "lr = lr*(N)" in said


def test_an_unknown_sweep(engine: Engine, capsys: Capture) -> None:
    enqueue(engine, name="quickstart")
    assert _fit("quikstart") == 3
    assert "did you mean 'quickstart'?" in capsys.readouterr().err


def test_an_empty_sweep(engine: Engine, capsys: Capture) -> None:
    queue.enqueue(engine, Sweep("hollow", ()))
    assert _fit("hollow") == 3
    said = capsys.readouterr().err
    assert "sweep 'hollow' has no SAE: there is no job in it" in said
    assert "orch enqueue FILE" in said


def test_too_few_jobs(engine: Engine, capsys: Capture) -> None:
    _job(engine, n=64)
    assert _fit("s", "--law", "ln") == 4
    said = capsys.readouterr().err
    assert "missing: (n=128, k=8, lr=auto), (n=256, k=8, lr=auto)" in said
    assert "orch enqueue FILE --name s sae.n_latents=128,256 sae.k=8 optimizer.lr=auto" in said


def test_the_command_that_is_named_supplies_what_is_missing(engine: Engine, capsys: Capture, tmp_path: Path) -> None:
    _job(engine, n=64)
    assert _fit("s", "--law", "ln") == 4
    line = next(line for line in capsys.readouterr().err.splitlines() if "orch enqueue FILE" in line)
    (tmp_path / "file.yaml").write_text("sweep: [{zip: {sae.n_latents: [32, 64], optimizer.lr: [0.1, 0.2]}}]\n")
    words = line.partition("orch ")[2].replace("FILE", str(tmp_path / "file.yaml")).split()
    assert run(words) == 0
    for n in (128, 256):
        lease = claim(engine).lease
        facts = {"n_latents": n, "lr": 0.01, "d_model": 128, "subject": {"site": "resid_post of h.3"}}
        queue.begin(engine, lease, facts, 0)
        queue.record(engine, lease, [point(400, _law(n, 8), l0=8.0)])
        queue.finish(engine, lease, result())
    assert _fit("s", "--law", "ln") == 0


def test_a_job_whose_budget_was_too_short_goes_on_by_the_command_that_is_named(engine: Engine, capsys: Capture) -> None:
    _job(engine, n=64)
    short = _job(engine, n=128, outcome="max_tokens")
    assert _fit("s", "--law", "ln") == 4
    line = next(line for line in capsys.readouterr().err.splitlines() if "orch extend" in line)
    assert run(line.partition("orch ")[2].split()) == 0
    job = results.jobs(engine, ids=[short])[0]
    assert (job.state, job.max_tokens, job.asked_max_tokens) == ("queued", 40_000_000, 20_000_000)
    lease = claim(engine).lease
    queue.begin(engine, lease, {"n_latents": 128, "lr": 0.01, "d_model": 128}, 0)
    queue.finish(engine, lease, result(outcome="max_tokens", tokens_seen=40_000_000))
    assert _fit("s", "--law", "ln") == 4
    said = capsys.readouterr().err
    assert f"job {short} reached its budget, and one 2 times as large, too" in said
    assert f"orch extend {short}" not in said


def test_jobs_of_two_hook_points(engine: Engine, capsys: Capture) -> None:
    _grid(engine)
    _grid(engine, layer=4)
    assert _fit("s", "-l", "ln") == 4
    said = capsys.readouterr().err
    assert "these jobs mix hook points: resid_post of h.3 (6 jobs, such as 1); resid_post of h.4 (6 jobs" in said
    assert "Choose one: --hook 'resid_post of h.3'" in said
    assert _fit("s", "-l", "ln", "--hook", "resid_post of h.4") == 0
    assert "another hook: resid_post of h.3: jobs 1, 2" in capsys.readouterr().out


def test_several_sweeps_are_fitted_together(engine: Engine, capsys: Capture) -> None:
    for at, n in enumerate(SIZES):
        _job(engine, n=n, name="s" if at % 2 else "t")
    assert _fit("t", "s", "-l", "ln") == 0
    assert "(s, t)" in capsys.readouterr().out
    assert store.newest(engine, sweep="t")[0].fit.sweeps == ("s", "t")


def test_a_narrow_terminal(engine: Engine, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    _grid(engine)
    monkeypatch.setattr("orchestrator.cli.terminal.width", lambda: 60)
    assert _fit("s", "-l", "lc") == 0
    tables = [line for line in capsys.readouterr().out.splitlines() if "OBSERVED" in line]
    assert tables
    assert all(len(line) <= 60 for line in tables)


def test_off_by_is_a_share_of_what_was_predicted(engine: Engine, capsys: Capture) -> None:
    for n, factor in zip(SIZES[:4], (1.5, 1.0, 1.0, 1.5), strict=True):
        _job(engine, n=n, points=tuple(factor * 0.2 * (1 + 40 * 2 ** (-at / 4)) for at in range(33)))
    assert _fit("s", "-l", "ln", "-o", "json") == 0
    [found] = json.loads(capsys.readouterr().out)["items"]
    one = found["residuals"][0]
    assert _fit("s", "-l", "ln") == 0
    said = capsys.readouterr().out
    assert f"{one['observed'] / one['predicted'] - 1:+.2%}" in said
    assert f"{math.exp(found['holdout_error']) - 1:.2%} off at the largest n (job " in said


@pytest.mark.parametrize("option", ["--subject", "--hook", "--data", "--activation"])
def test_what_no_job_is_of_is_named_with_what_there_is(engine: Engine, capsys: Capture, option: str) -> None:
    _grid(engine)
    assert _fit("s", "-l", "ln", option, "nowhere") == 2
    said = capsys.readouterr()
    assert f"{option}: no job is of 'nowhere'" in said.err
    assert "orch enqueue" not in said.err
    assert said.out == ""


def test_one_size_is_no_law_of_compute(engine: Engine, capsys: Capture) -> None:
    _job(engine, n=256)
    assert _fit("s", "-l", "lc") == 4
    said = capsys.readouterr().err
    assert "of 3 sizes or more" in said
    assert "bins of n = 256" in said
    assert "sae.n_latents=" in said
    _job(engine, n=1024)
    assert _fit("s", "-l", "lc") == 4
    _job(engine, n=4096)
    assert _fit("s", "-l", "lc") == 0


def test_a_fit_made_before_the_other_layer_had_run_does_not_double_the_report(
    engine: Engine, tmp_path: Path, capsys: Capture
) -> None:
    _grid(engine)
    for n in SIZES:
        queue.enqueue(engine, Sweep("s", (parse({"subject": {"layer": 4}, "sae": {"n_latents": n, "k": 8}}),)))
    assert _fit("s", "-l", "ln") == 0
    [first] = store.newest(engine, sweep="s", law="ln")
    assert first.fit.hook == "resid_post of h.3"
    assert "resid_post of h.3" in capsys.readouterr().out
    _run_waiting(engine, layer=4)
    assert run(["plot", "s", "--figure", "ln", "--folder", str(tmp_path)]) == 0
    kept = store.newest(engine, sweep="s", law="ln")
    assert sorted((one.fit.group, one.fit.hook, one.fit.jobs[0]) for one in kept) == [
        ("k=8", "resid_post of h.3", 1), ("k=8", "resid_post of h.4", 7)
    ]  # fmt: skip
    assert first.id not in {one.id for one in kept}


def _run_waiting(engine: Engine, *, layer: int) -> None:
    """Let the jobs that wait come to what the law says."""
    for n in SIZES:
        lease = claim(engine).lease
        facts = {"lr": 0.1, "n_latents": n, "d_model": 128, "subject": {"site": f"resid_post of h.{layer}"}}
        queue.begin(engine, lease, facts, 0)
        queue.record(engine, lease, [point(100 * n * t, _law(n, 8) * (1 + 1 / t), l0=8) for t in range(1, 33)])
        queue.finish(engine, lease, result(tokens_seen=3200 * n))


@on_both
def test_stored_fits_are_removed(engine: Engine, capsys: Capture) -> None:
    _grid(engine, ks=(8, 32))
    for _ in range(2):
        assert _fit("s", "-l", "ln", "-l", "tn") == 0
    old = store.history(engine, sweep="s")
    capsys.readouterr()
    assert run(["fit", "--remove", str(old[-1].id)]) == 0
    assert capsys.readouterr().out.startswith(f"Removed fit {old[-1].id}: L(N), k=8, shipped:stdlib-gpt2, resid_post")
    assert len(store.history(engine, sweep="s")) == 7
    assert run(["fit", "s", "--law", "ln", "--remove"]) == 2, "three fits, and nobody to ask"
    assert run(["fit", "s", "--law", "ln", "--remove", "--layer", "3", "-y", "-o", "json"]) == 0
    removed = json.loads(capsys.readouterr().out)["items"]
    assert [one["law"] for one in removed] == ["ln"] * 3
    assert {one.fit.law for one in store.history(engine, sweep="s")} == {"tn"}
    assert run(["fit", "s", "--remove", "-y"]) == 0
    assert store.history(engine, sweep="s") == []


def test_what_is_not_stored_cannot_be_removed(engine: Engine, capsys: Capture) -> None:
    _grid(engine)
    assert _fit("s", "-l", "ln") == 0
    for arguments, says in (
        (["7777"], "there is no fit 7777"),
        (["9" * 20], f"there is no fit {'9' * 20}\n"),
        (["9" * 5000], "there is no fit 9999"),
        (["²"], "there is no sweep '²'"),
        (["s", "--law", "tn"], "no stored fit to s is of that\nfit "),
        (["nowhere"], "nowhere"),
    ):
        assert run(["fit", *arguments, "--remove"]) == 3
        assert says in capsys.readouterr().err
    assert len(store.history(engine, sweep="s")) == 1


@pytest.mark.parametrize("option", ["--subject", "--hook", "--data", "--activation"])
def test_all_that_speak_of_laws_take_the_same_choice(engine: Engine, capsys: Capture, option: str) -> None:
    _grid(engine)
    for command in (["forecast", "s", "--n-latents", "512"], ["plan", "s", "--budget", "1h"], ["plan", "s", "--lr"]):
        assert run([*command, option, "nowhere"]) == 2
        assert f"{option}: no job is of 'nowhere'" in capsys.readouterr().err
