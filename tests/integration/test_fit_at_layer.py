"""`--layer` on SAEs of several layers: fits, forecasts and reports of the curve of one of them."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.cli.main import run
from orchestrator.config.validation import parse
from orchestrator.curves.point import LayerPoint
from orchestrator.database.schema import open_database
from orchestrator.fits import store
from orchestrator.results.fit_rows import measured
from orchestrator.scaling.plots.all_plots import draw
from orchestrator.settings import Settings
from orchestrator.sweep.sweep import Sweep
from tests.law_database import D_MODEL, config, curve, points
from tests.queue_shorthand import claim, result
from tests.worker_shorthand import items, let_commands_reach

pytestmark = pytest.mark.databases("sqlite")  # but what is read and stored of a layer is on both

Capture = pytest.CaptureFixture[str]
SIZES = (128, 256, 512, 1024, 2048)
EXPONENTS = {0: -0.2, 3: -0.4, 5: -0.3}
WARMUP = 20_000


@pytest.fixture
def engine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    let_commands_reach(settings, monkeypatch)
    monkeypatch.setattr("orchestrator.cli.commands.fit_command.ship", lambda _: None)  # it has its own tests
    engine = open_database(settings)
    yield engine
    engine.dispose()


def at(layer: int, n: int) -> float:
    return math.exp(0.2 + EXPONENTS[layer] * math.log(n)) + 0.1


def trained(engine: Engine, n: int, layers: Sequence[int], *, name: str = "m") -> int:
    """Let a job of some layers end; one layer alone has the curve that it has among several."""
    asked = config(n).model_dump(mode="json", exclude_none=True)
    place = {"layer": layers[0]} if len(layers) == 1 else {"layers": list(layers)}
    asked |= {"subject": place, "optimizer": {"lr": 1e-3, "warmup_tokens": WARMUP}}
    [job_id] = queue.enqueue(engine, Sweep(name, (parse(asked),))).job_ids
    lease = claim(engine).lease
    site = f"resid_post of block {layers[0]}" if len(layers) == 1 else f"resid_post of layers {str(layers)[1:-1]}"
    facts = {"lr": 1e-3, "n_latents": n, "d_model": D_MODEL, "device": "cpu"}
    queue.begin(engine, lease, facts | {"subject": {"site": site, "layers": list(layers), "parameters_run": 10**6}}, 0)
    curves = [curve(at(layer, n), n, 2**24) for layer in layers]
    tokens = [t for t, _ in min(curves, key=len)]
    by_layer = [[values[index][1] for values in curves] for index in range(len(tokens))]
    known = points([(t, sum(fvus) / len(fvus)) for t, fvus in zip(tokens, by_layer, strict=True)], n, 8)
    if len(layers) > 1:
        told = [tuple(map(layer_point, layers, fvus)) for fvus in by_layer]
        known = [point._replace(by_layer=each) for point, each in zip(known, told, strict=True)]
    queue.record(engine, lease, known)
    queue.finish(engine, lease, result(outcome="converged", tokens_seen=tokens[-1]))
    assert job_id is not None
    return job_id


def layer_point(layer: int, fvu: float) -> LayerPoint:
    return LayerPoint(layer, fvu, 8.0, 0.25)


@pytest.mark.databases("sqlite", "postgresql")
def test_a_job_at_a_layer_is_measured_as_one_that_was_trained_there_alone(engine: Engine) -> None:
    trained(engine, 512, [0, 3])
    trained(engine, 512, [3], name="alone")
    [mean], [alone] = measured(engine, ["m"]), measured(engine, ["alone"], layer=3)
    [there] = measured(engine, ["m"], curves=False, layer=3)
    assert alone == measured(engine, ["alone"])[0], "a job of one layer stays as it is"
    assert (mean.layer, mean.layers, there.layer, there.layers) == (None, (0, 3), 3, (0, 3))
    assert there.hook == "resid_post of layers 0, 3, at layer 3"
    for name in ("fvu", "l0", "l_inf", "l_inf_se", "tokens_to_convergence", "tokens_lower_bound", "tokens_interval"):
        assert getattr(there, name) == getattr(alone, name), name
    assert there.dead_share == 0.25
    assert there.l_inf == pytest.approx(at(3, 512), rel=0.01)
    assert there.tokens_to_convergence[0.01]
    assert mean.fvu == pytest.approx((there.fvu + measured(engine, ["m"], layer=0)[0].fvu) / 2)  # type: ignore[operator]
    assert measured(engine, ["m"], layer=1) == [mean], "it reads no such layer"


@pytest.fixture
def jobs(engine: Engine) -> list[int]:
    """Jobs of two layers at every size, and one that reads another set of them."""
    found = [trained(engine, n, [0, 3]) for n in SIZES]
    return [*found, trained(engine, 4096, [0, 5])]


def fitted(*arguments: str) -> int:
    return run(["fit", "m", "--bootstrap", "100", *arguments])


@pytest.mark.databases("sqlite", "postgresql")
def test_a_fit_takes_the_curve_of_a_layer(engine: Engine, jobs: list[int], capsys: Capture) -> None:
    mean = ["--hook", "resid_post of layers 0, 3"]
    for chosen in (mean, ["--layer", "0", "--hook", "resid_post of layers 0, 3, at layer 0"], ["--layer", "3"]):
        assert fitted("-l", "ln", "-l", "tn", "-l", "lc", *chosen) == 0
        assert ("at layer" in capsys.readouterr().out) == (chosen != mean)
    found = {(one.fit.law, one.fit.options.get("layer")): one.fit for one in store.newest(engine, sweep="m")}
    assert set(found) == {(law, layer) for law in ("ln", "tn", "lc") for layer in (None, 0, 3)}, "none supersedes one"
    for layer, exponent in ((0, EXPONENTS[0]), (3, EXPONENTS[3])):
        law = found["ln", layer]
        assert law.hook == f"resid_post of layers 0, 3, at layer {layer}"
        assert [one.observed for one in law.residuals] == pytest.approx([at(layer, n) for n in SIZES], rel=0.03)
        assert law.coefficients["b"].value == pytest.approx(exponent, abs=0.03)
        assert (law.jobs, [one.job_id for one in law.excluded]) == (tuple(jobs[:-1]), jobs[-1:])
    assert found["ln", 3].excluded[0].why == "another hook: resid_post of layers 0, 5"
    drawn = draw("lc", measured(engine, ["m"]), [found["lc", 3]])
    assert drawn is not None
    ends = [line.get_xydata()[-1, 1] for line in drawn.figure.axes[0].lines]  # type: ignore[index]
    for row in measured(engine, ["m"], layer=3)[: len(SIZES)]:
        assert any(end == pytest.approx(row.fvu) for end in ends), "curves are drawn as they are at the layer"


def test_a_forecast_is_of_the_layer(engine: Engine, jobs: list[int], capsys: Capture) -> None:
    forecast = ["forecast", "m", "--n-latents", "4096", "-o", "json"]
    for layer in (0, 3):
        chosen = ["--layer", str(layer), "--hook", f"resid_post of layers 0, 3, at layer {layer}"]
        for _ in range(2):  # from a fit made on the spot, then from one that is stored
            assert run([*forecast, *chosen]) == 0
            [found] = items(capsys)
            assert found["fvu"]["value"] == pytest.approx(at(layer, 4096), rel=0.05)
            assert fitted("-l", "ln", *chosen) == 0
            capsys.readouterr()
    assert run([*forecast, "--hook", "resid_post of layers 0, 3"]) == 0
    [mean] = items(capsys)
    assert mean["fvu"]["value"] == pytest.approx((at(0, 4096) + at(3, 4096)) / 2, rel=0.05)


def test_a_report_shows_the_fits_of_layers_beside_those_of_the_mean(
    engine: Engine, jobs: list[int], tmp_path: Path, capsys: Capture
) -> None:
    assert fitted("-l", "ln", "--layer", "3") == 0
    page = tmp_path / "page.html"
    assert run(["report", "m", "-o", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "resid_post of layers 0, 3, at layer 3" in text
    assert {one.fit.hook for one in store.newest(engine, sweep="m", law="ln")} == {
        "resid_post of layers 0, 3",
        "resid_post of layers 0, 3, at layer 3",
    }


def test_a_layer_that_no_job_reads_is_refused(engine: Engine, jobs: list[int], capsys: Capture) -> None:
    assert fitted("-l", "ln", "--layer", "7") == 2
    said = capsys.readouterr().err
    assert "--layer 7: no job is of it" in said
    assert "Layers: 0, 3, 5." in said
    assert fitted("-l", "ln", "--layer", "0") == 2
    said = capsys.readouterr().err
    assert "--layer 0: jobs read several hook points there: 'resid_post of layers 0, 3, at layer 0'" in said


def test_fits_of_a_layer_are_removed_by_it(engine: Engine, jobs: list[int], capsys: Capture) -> None:
    assert fitted("-l", "ln", "--layer", "3") == 0
    assert fitted("-l", "ln", "--hook", "resid_post of layers 0, 3") == 0
    assert fitted("--remove", "--layer", "3", "-y") == 0
    assert [one.fit.hook for one in store.newest(engine, sweep="m")] == ["resid_post of layers 0, 3"]
