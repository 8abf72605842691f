"""Fits in MLflow: a run each, with numbers, figures and payload; doing it twice changes nothing."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from benchmarks.filled_database import measured_jobs
from benchmarks.laws import planted_jobs
from orchestrator.cli.commands import services
from orchestrator.cli.main import run
from orchestrator.database.schema import open_database
from orchestrator.fits import store
from orchestrator.report import collect_contents
from orchestrator.results.fit_rows import measured
from orchestrator.scaling.fit.fitting import fit
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plots.sampling import with_curves
from orchestrator.settings import Settings
from tests.integration.test_report_commands import enqueue, train
from worker.tracking.fit_runs import _figures, _reader
from worker.tracking.shipper import sync

# MLflow uses what its own libraries call old, and leaves connections to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def place(tmp_path: Path, empty_store: Path) -> Settings:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("mlflow.db", "other.db"):
        shutil.copy(empty_store, home / name)
    return Settings(home=home)


@pytest.fixture
def engine(place: Settings) -> Iterator[Engine]:
    engine = open_database(place)
    yield engine
    engine.dispose()


def shown(place: Settings) -> dict[int, Any]:
    """Return MLflow's runs of fits by fit id."""
    from mlflow import MlflowClient

    client = MlflowClient(place.tracking)
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`orch.kind` = 'fit'")
    return {int(run.data.tags["orch.fit_id"]): run for run in runs}


def artifacts(place: Settings, run: Any) -> set[str]:
    from mlflow import MlflowClient

    client = MlflowClient(place.tracking)
    return {file.path for folder in ("fit", "figures") for file in client.list_artifacts(run.info.run_id, folder)}


def test_a_fit_is_a_run_with_all_of_it(engine: Engine, place: Settings) -> None:
    enqueue(engine, ks=(4,))
    train(engine, 4)
    stored = {one.id: one for one in collect_contents(engine, ["laws"], laws=("ln", "tn")).fits}
    assert sync(engine, place, "laws", jobs=False) == len(stored) == 2
    runs = shown(place)
    assert set(runs) == set(stored)
    for fit_id, shown_run in runs.items():
        fit = stored[fit_id].fit
        assert shown_run.info.status == "FINISHED"
        exponent = "b" if fit.law == "ln" else "p"
        value = fit.coefficients[exponent]
        assert [
            shown_run.data.metrics[f"fit/{name}"] for name in (exponent, f"{exponent}.low", f"{exponent}.high")
        ] == list(value)
        assert shown_run.data.params["jobs"] == "1, 2, 3, 4"
        assert shown_run.data.params["form"] == fit.form
        figures = {f"figures/{name}.svg" for name in (fit.law, "residuals")}
        assert artifacts(place, shown_run) == figures | {"fit/fit.json"}
    named = {one.mlflow_run_id for one in store.newest(engine, sweep="laws")}
    assert named == {run.info.run_id for run in runs.values()}
    (payload,) = (place.home / "mlartifacts").rglob(f"{runs[1].info.run_id}/**/fit.json")
    assert json.loads(payload.read_text())["law"] == stored[1].fit.law


def test_twice_changes_nothing_and_a_lost_store_is_rebuilt(engine: Engine, place: Settings) -> None:
    enqueue(engine, ks=(4,))
    train(engine, 4)
    collect_contents(engine, ["laws"], laws=("ln",))
    assert sync(engine, place, "laws", jobs=False) == 1
    (first,) = shown(place).values()
    sync(engine, place, "laws", jobs=False)
    (again,) = shown(place).values()
    assert (again.info.run_id, again.info.end_time, again.data.tags) == (
        first.info.run_id, first.info.end_time, first.data.tags,
    )  # fmt: skip
    other = replace(place, tracking_url=f"sqlite:///{place.home}/other.db")
    sync(engine, other, "laws", jobs=False)
    (rebuilt,) = shown(other).values()
    assert rebuilt.data.metrics == first.data.metrics
    assert rebuilt.data.params == first.data.params


def test_a_superseded_fit_stays_and_says_by_which(engine: Engine, place: Settings) -> None:
    enqueue(engine, ks=(4,))
    train(engine, 4)
    (found,) = collect_contents(engine, ["laws"], laws=("ln",)).fits
    sync(engine, place, "laws", jobs=False)
    (newer,) = store.save(engine, [found.fit])
    sync(engine, place, "laws", jobs=False)
    runs = shown(place)
    assert set(runs) == {found.id, newer}
    assert runs[found.id].data.tags["orch.superseded_by"] == str(newer)
    assert "orch.superseded_by" not in runs[newer].data.tags


def test_a_fit_ends_by_shipping_and_warns_where_tracking_is_away(
    engine: Engine, place: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enqueue(engine, ks=(4,))
    train(engine, 4)
    monkeypatch.setenv("ORCH_HOME", str(place.home))
    monkeypatch.setenv("ORCH_TRACKING_URL", "http://127.0.0.1:1")
    assert run(["fit", "laws", "--law", "ln", "--bootstrap", "100"]) == 0, "the fit stands"
    said = capsys.readouterr().err
    assert "Warning: MLflow lacks the newest fits of laws" in said
    assert "Error:" not in said
    assert "orch tracking sync laws" in said
    monkeypatch.delenv("ORCH_TRACKING_URL")
    services.ship(["laws"])
    assert capsys.readouterr() == ("", "")
    assert set(shown(place)) == {1}


def test_of_curves_those_that_are_drawn_are_read(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.scaling.plots.sampling.MOST_SHOWN", 3)
    measured_jobs(engine, planted_jobs(1)[::5], sweep="law")
    rows = measured(engine, ["law"])
    by_law = {law: replace(fit(law, rows, n_bootstrap=100)[0], sweeps=("law",)) for law in LAWS if law in ("lc", "ln")}
    read = _reader(engine)
    few, none = read(by_law["lc"]), read(by_law["ln"])
    assert [bool(row.curve) for row in none] == [False] * len(rows)
    assert [row.curve for row in few if row.curve] == [row.curve for row in with_curves(rows)]
    for law, given in (("lc", few), ("ln", none)):
        drawn = [file.read_bytes() for file in _figures(given, by_law[law], tmp_path)]
        assert drawn == [file.read_bytes() for file in _figures(rows, by_law[law], tmp_path)], law
    at_layer = replace(by_law["ln"], options={"layer": 1})
    assert all(row.curve for row in read(at_layer)), "a loss at a layer is in the curve"
