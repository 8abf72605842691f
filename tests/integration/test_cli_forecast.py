"""`orch forecast` and `orch plan` on a database of finished jobs of a known law; and the search for learning rates."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from orchestrator import lr_search, queue, results
from orchestrator.cli.main import run
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.database.engine import transaction
from orchestrator.database.models import Job
from orchestrator.database.schema import open_database
from orchestrator.fits import store
from orchestrator.fits.forecast_inputs import load_inputs
from orchestrator.job_states import Outcome
from orchestrator.results.fit_rows import measured
from orchestrator.scaling.fit.fitting import fit
from orchestrator.settings import Settings
from orchestrator.sweep import expand
from orchestrator.sweep.sweep import Sweep
from tests.law_database import SIZES, config, finish, finished_sweep, law
from tests.worker_shorthand import items

pytestmark = pytest.mark.databases("sqlite")

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def known(law_database: Path, settings: Settings) -> Iterator[Engine]:
    """Return a database with a finished sweep of a known law."""
    shutil.copy(law_database, settings.home / "orch.db")
    engine = open_database(settings)
    yield engine
    engine.dispose()


def test_a_forecast(known: Engine, capsys: Capture) -> None:
    assert run(["forecast", "law", "--n-latents", "512,8192", "--k", "8", "-o", "json"]) == 0
    within, beyond = items(capsys)
    assert (within["extrapolation"], beyond["extrapolation"]) == (1.0, 4.0)
    assert within["fvu"]["value"] == pytest.approx(law(512), rel=0.03)
    for found in (within, beyond):
        for name in ("fvu", "tokens_to_convergence", "tokens", "flops_dense", "flops_executed", "seconds"):
            assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
    assert beyond["tokens"]["value"] / within["tokens"]["value"] == pytest.approx(16**0.6, rel=0.05)
    assert (beyond["speed"]["device"], beyond["speed"]["n_latents"]) == ("cpu", 2048)
    assert within["seconds"]["value"] == pytest.approx(within["tokens"]["value"] / 1e5, rel=0.02)


def test_a_forecast_for_a_person(known: Engine, capsys: Capture) -> None:
    assert run(["forecast", "law", "--n-latents", "pow2(12,13)"]) == 0
    said = capsys.readouterr()
    head, *lines = said.out.splitlines()
    assert head.split() == ["N", "K", "FVU", "T(1%)", "TOKENS", "FLOPS", "TIME", "BEYOND"]
    assert [tuple(line.split()[:2]) for line in lines] == [("4096", "4"), ("8192", "4"), ("4096", "8"), ("8192", "8")]
    assert lines[0].endswith("2×")
    assert re.search(r"0\.\d{4} \(0\.\d{4}–0\.\d{4}\)", lines[0])
    assert "as measured at n = 2048 (jobs 5, 10), scaled by FLOPs" in said.err
    assert "form" in said.err


def test_a_stored_fit_is_used_until_a_job_ends_after_it(known: Engine) -> None:
    rows = measured(known, ["law"])
    store.save(known, fit("ln", rows, n_bootstrap=50))
    first = load_inputs(known, ["law"]).inputs
    assert all(one.n_bootstrap <= 50 for one in first.losses if one.law == "ln")
    queue.enqueue(known, Sweep("law", (config(4096),)))
    assert all(one.n_bootstrap <= 50 for one in load_inputs(known, ["law"]).inputs.losses if one.law == "ln")
    job_id = finish(known)
    again = [one for one in load_inputs(known, ["law"]).inputs.losses if one.law == "ln"]
    assert all(one.n_bootstrap > 50 for one in again)
    assert any(job_id in one.jobs for one in again)


def test_a_job_that_ends_while_a_fit_is_made_is_not_forgotten(known: Engine) -> None:
    rows = measured(known, ["law"])
    queue.enqueue(known, Sweep("law", (config(4096),)))
    job_id = finish(known)
    store.save(known, fit("ln", rows, n_bootstrap=50))
    assert any(job_id in one.jobs for one in load_inputs(known, ["law"]).inputs.losses if one.law == "ln")


def test_from_a_plan_to_the_queue(known: Engine, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "next.yaml"
    assert run(["plan", "law", "--budget", "10 min", "-o", str(file)]) == 0
    said = capsys.readouterr()
    assert "orch enqueue" in said.err
    assert "beyond the largest" in said.out
    text = file.read_text()
    assert text.startswith("# Written by: orch plan law --budget '10 min'\n")
    assert run(["plan", "law", "--budget", "10 min", "-o", str(file)]) == 0, "its own file it writes again"
    capsys.readouterr()
    planned = expand(file)
    assert (planned.name, planned.labels) == ("law", {"project": "law"})
    assert run(["plan", "law", "--budget", "10 min", "-o", "json"]) == 0
    listed = items(capsys)
    assert [one["config_id"] for one in listed] == [one.config_id for one in planned.configs]
    assert sum(one["seconds"] for one in listed) <= 600
    assert run(["enqueue", str(file)]) == 0
    assert f"added {len(listed)}, already there 0" in capsys.readouterr().out
    assert run(["plan", "law", "--budget", "10 min", "-o", "json"]) == 0, "while the jobs wait, they count as done"
    waiting = {one["config_id"] for one in listed}
    assert not waiting & {one["config_id"] for one in items(capsys)}
    for _ in listed:
        finish(known)
    before, after = (fit("ln", rows, n_bootstrap=300)[1] for rows in (_first(known, 10), measured(known, ["law"])))
    widths = [one.coefficients["b"].high - one.coefficients["b"].low for one in (before, after) if one.form == "pure"]
    assert len(widths) < 2 or widths[1] < widths[0]
    assert max(one.x for one in after.residuals) > max(SIZES)


def test_a_file_that_is_no_plan_stays(known: Engine, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\n")
    for arguments in (["--budget", "1h"], ["--lr"]):
        assert run(["plan", "law", *arguments, "-o", str(file)]) == 2
        assert "is there already, and no plan" in capsys.readouterr().err
    assert file.read_text() == "name: mine\n"


def test_what_else_the_jobs_vary_is_told(known: Engine, capsys: Capture) -> None:
    other = config(512, seed=7)
    finished_sweep(known, other.model_copy(update={"optimizer": other.optimizer.model_copy(update={"ema": 0.9})}))
    assert run(["forecast", "law", "--n-latents", "512"]) == 0
    assert "These jobs vary optimizer.ema too" in capsys.readouterr().err


def _first(engine: Engine, n: int) -> list[Any]:
    return measured(engine, ["law"])[:n]


def _of_layer(layer: int, *sizes: int) -> list[JobConfig]:
    found = [config(n) for n in sizes]
    return [one.model_copy(update={"subject": one.subject.model_copy(update={"layer": layer})}) for one in found]


def test_the_jobs_of_one_layer_are_chosen_and_those_not_ended_told(engine: Engine, capsys: Capture) -> None:
    finished_sweep(engine, *_of_layer(3, *SIZES), *_of_layer(1, *SIZES))
    capsys.readouterr()
    sizes = ["--n-latents", "512,4096"]
    for command in (["forecast", "law", *sizes], ["plan", "law", "--budget", "1h"], ["plan", "law", "--lr"]):
        assert run(command) == 2
        said = capsys.readouterr().err
        assert "these jobs are of several hook points: resid_post of block 3 (job 1 of law)" in said
        assert "Choose: --hook 'resid_post of block 1'" in said
        assert run([*command, "--layer", "2"]) == 2
        assert "--layer 2: no job is of it\nLayers: 1, 3." in capsys.readouterr().err
        assert run([*command, "--layer", "1", "-o", "json"]) == 0
        found, other = items(capsys), ["--hook", "resid_post of block 1", "-o", "json"]
        assert run([*command, *other]) == 0
        assert items(capsys) == found
    assert run(["plan", "law", "--layer", "1", "--budget", "1h", "-o", "json"]) == 0
    assert {one["config"]["subject"]["layer"] for one in items(capsys)} == {1}
    assert run(["plan", "law", "--layer", "1", "--budget", "1h", "-o", "-"]) == 0
    assert "orch plan law --budget '1h' --layer 1\n" in capsys.readouterr().out
    waiting = queue.enqueue(engine, Sweep("law", tuple(_of_layer(1, 4096)))).job_ids
    assert run(["forecast", "law", *sizes, "--layer", "1"]) == 0
    assert "1 of these 6 jobs has not ended (1 queued): no law knows of them yet." in capsys.readouterr().err
    assert run(["plan", "law", "--budget", "1h", "--layer", "1"]) == 0
    said = capsys.readouterr().err
    assert "1 of these 6 jobs has not ended (1 queued)" in said
    assert f"; job {waiting[0]}, not ended yet, should bring them to " in said
    assert run(["plan", "law", "--budget", "1h", "--layer", "3"]) == 0
    assert "not ended" not in capsys.readouterr().err


def test_a_layer_that_has_not_run_is_no_part_of_another(engine: Engine, capsys: Capture) -> None:
    """Its jobs counted as on their way for the law of the layer that had run."""
    finished_sweep(engine, *_of_layer(3, *SIZES))
    queue.enqueue(engine, Sweep("law", tuple(_of_layer(1, *SIZES))))
    assert run(["plan", "law", "--budget", "1h"]) == 2
    assert "several hook points" in capsys.readouterr().err
    assert run(["plan", "law", "--budget", "1h", "--layer", "3"]) == 0
    assert "not ended" not in capsys.readouterr().err


def test_a_target(known: Engine, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "target.yaml"
    assert run(["plan", "law", "--target-fvu", "0.3", "--k", "8", "-o", str(file)]) == 0
    said = capsys.readouterr()
    assert "the smallest expected to reach fvu 0.3" in said.out
    (planned,) = expand(file).configs
    assert law(planned.sae.n_latents or 0) == pytest.approx(0.3, rel=0.05)
    assert planned.optimizer.lr == pytest.approx(1e-3 * (2048 / (planned.sae.n_latents or 1)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["forecast", "lav", "--n-latents", "8"], 3, "did you mean 'law'"),
        (["forecast", "law", "--n-latents", "-4"], 2, "-4 is no whole number from 1 on"),
        (["forecast", "law", "--n-latents", "1.5"], 2, "1.5 is no whole number"),
        (["forecast", "law", "--n-latents", "many"], 2, "'many' is no whole number"),
        (["forecast", "law", "--n-latents", "4", "--k", "8"], 2, "k = 8 is above n_latents = 4"),
        (["forecast", "law", "--n-latents", "512", "--device", "cuda"], 2, "no job of these sweeps ran on 'cuda'"),
        (["plan", "law"], 2, "Give one of --budget, --target-fvu and --lr"),
        (["plan", "law", "--budget", "1h", "--lr"], 2, "Give one of"),
        (["plan", "law", "--budget", "1h", "--follow"], 2, "go with --lr"),
        (["plan", "law", "--budget", "much"], 2, "the budget 'much' is no amount of time or FLOPs"),
        (["plan", "law", "--budget", "1s"], 2, "is below the cheapest job"),
        (["plan", "law", "--target-fvu", "2"], 2, "no share between 0 and 1"),
        (["plan", "law", "--target-fvu", "0.001"], 2, "0.001"),
        (["plan", "few", "--budget", "1h"], 4, "L(N)"),
        (["forecast", "few", "--n-latents", "512"], 4, "needs converged jobs at 3 sizes or more"),
        (["forecast", "law", "mixed", "--n-latents", "512"], 2, "these jobs are of several hook points"),
        (["plan", "mixed", "law", "--lr"], 2, "these jobs are of several hook points"),
        (["plan", "law", "--lr", "--k", "3"], 3, "has such a k"),
        (["plan", "law", "--lr", "--n-latents", "2"], 2, "is above n_latents = 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(known: Engine, capsys: Capture, arguments: list[str], code: int, says: str) -> None:
    finished_sweep(known, config(128), config(256), name="few")
    elsewhere = config(128).model_copy(update={"subject": parse({"subject": {"layer": 1}}).subject})
    finished_sweep(known, elsewhere, name="mixed")
    assert run(arguments) == code
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""


def test_a_search_is_shown_and_offered_as_a_sweep_file(known: Engine, capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "rates.yaml"
    assert run(["plan", "law", "--lr", "--k", "8", "--n-latents", "4096", "-o", str(file)]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.split()[:2] == ["128", "8"])
    assert line.split()[2:7] == ["0.001", "0.001", "0.0005,", "0.002", "open"]
    planned = [(one.sae.n_latents, one.sae.k, one.optimizer.lr) for one in expand(file).configs]
    assert planned == [*((n, 8, lr) for n in SIZES for lr in (5e-4, 2e-3)), (4096, 8, "auto")]
    assert run(["plan", "law", "--lr", "--k", "8", "-o", "json"]) == 0
    first = items(capsys)[0]
    assert (first["n_latents"], first["best"], first["next"]) == (128, 1e-3, [5e-4, 2e-3])


class Player(threading.Thread):
    """Finishes what is queued: 8e-3 and above diverges, 2e-3 is best; a rate of 2.5e-4 runs on and on."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.engine, self.over = engine, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            if results.counts(self.engine)["queued"]:
                self.finish_one()

    def finish_one(self) -> None:
        claimed = queue.claim(self.engine, queue.Worker("w", "here", 1, "cpu"), token="t", lease_seconds=600)
        assert claimed
        lr = claimed.job_config.optimizer.lr
        value = 1e-3 if lr == "auto" else float(lr)
        facts = {"d_model": 64, "n_latents": claimed.job_config.sae.n_latents, "k": 8, "lr": value, "device": "cpu"}
        queue.begin(self.engine, claimed.lease, facts, 0)
        from tests.law_database import points

        loss = 0.2 * (1 + 0.2 * abs(value / 2e-3 - 1))
        known = points([(8192 * 2**at, loss * (1 + 0.5**at)) for at in range(12)], 256, 8)
        queue.record(self.engine, claimed.lease, known)
        outcome: Outcome = "diverged" if value >= 8e-3 else "converged"
        ended = queue.Result(outcome, known[-1].tokens_seen, 1.2, "file", 1.0, 1e9, 1e9, 1e9)
        queue.finish(self.engine, claimed.lease, ended)


@pytest.fixture
def player(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Player]:
    monkeypatch.setattr(lr_search, "POLL_SECONDS", 0.02)
    player = Player(engine)
    player.start()
    yield player
    player.over.set()
    player.join()


def test_a_search_is_followed_to_its_end_and_again(engine: Engine, capsys: Capture, player: Player) -> None:
    queue.enqueue(engine, Sweep("s", (config(256, lr=None),), labels={"a": "b"}))
    assert run(["plan", "s", "--lr", "--follow"]) == 0
    said = capsys.readouterr()
    (line,) = [line for line in said.out.splitlines() if line.split()[:1] == ["256"]]
    assert line.split()[:6] == ["256", "8", "0.004", "0.002", "–", "bracketed"]
    rates_tried = sorted(row.lr or 0 for row in measured(engine, ["s"]))
    assert rates_tried == [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]
    assert run(["plan", "s", "--lr", "--follow"]) == 0, "nothing is left to do"
    assert len(measured(engine, ["s"])) == 5
    assert results.sweeps(engine)[0].labels == {"a": "b"}, "what the sweep was told stays"


def test_two_searches_at_once_enqueue_once(engine: Engine, player: Player, sqlite_settings: Settings) -> None:
    queue.enqueue(engine, Sweep("s", (config(256, lr=None), config(512, lr=None))))
    scope = lr_search.SearchScope(("s",), (), ())
    others = [threading.Thread(target=list, args=(lr_search.follow(sqlite_settings, engine, scope),)) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert not other.is_alive()
    rows = measured(engine, ["s"])
    assert len({row.config_id for row in rows}) == len(rows) == 10


def test_what_cannot_catch_up_is_cancelled(engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    from tests.law_database import points

    queue.enqueue(engine, Sweep("s", tuple(config(256, lr=lr) for lr in (1e-3, 5e-4))))
    finish(engine)
    slow = queue.claim(engine, queue.Worker("w", "here", 1, "cpu"), token="slow", lease_seconds=600)
    assert slow
    queue.begin(
        engine,
        slow.lease,
        {"d_model": 64, "n_latents": 256, "k": 8, "lr": 5e-4, "subject": {"site": "resid_post of block 3"}},
        0,
    )
    flat = [(8192 * 2**at, 0.95 - 0.001 * at) for at in range(10)]
    queue.record(engine, slow.lease, points(flat, 256, 8))
    assert run(["plan", "s", "--lr", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["cancel"] == [2]
    looks = iter(range(3))

    def sleep(_: float) -> None:
        if next(looks) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.lr_search.time.sleep", sleep)
    assert run(["plan", "s", "--lr", "--follow"]) == 130, "Ctrl-C"
    assert capsys.readouterr().err.count("job 2  cannot catch up: asked to stop") == 1
    assert results.jobs(engine, ids=[2])[0].desired == "cancel"


def test_a_failed_rate_ends_the_search_with_what_to_do(engine: Engine, capsys: Capture, player: Player) -> None:
    queue.enqueue(engine, Sweep("s", (config(256, lr=None),)))
    player.over.set()
    player.join()
    with transaction(engine) as session:
        session.execute(update(Job).values(state="failed", finished_at=1.0, reason="Boom"))
    assert run(["plan", "s", "--lr", "--follow"]) == 4
    said = capsys.readouterr().err
    assert "the search at n_latents = 256, k = 8 cannot go on: job 1 failed" in said
    assert "orch retry 1" in said
