"""How a fit looks in MLflow: a run in its sweep's experiment, computed from the database alone."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import Engine, select

from orchestrator import queue
from orchestrator.database.engine import reading
from orchestrator.database.models import SweepRow
from orchestrator.fits import store
from orchestrator.masking import mask_all
from orchestrator.results.fit_rows import measured
from orchestrator.results.job_history import curves
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plots.all_plots import draw, figure_names, law_of
from orchestrator.scaling.plots.sampling import with_curves
from orchestrator.scaling.plots.svg import svg
from orchestrator.scaling.types import Fit, JobMeasurement, StoredFit
from orchestrator.settings import Settings
from worker.tracking.mlflow_client import Measure, MlflowClient

Read = Callable[[Fit], Sequence[JobMeasurement]]
"""From a fit to the jobs of its sweeps, with the curves that its figures show."""


def project_fits(engine: Engine, settings: Settings, sweep: str, *, runs: MlflowClient | None = None) -> int:
    """Bring MLflow up to date with every fit to jobs of a sweep, the superseded ones too; return their number."""
    fits = store.history(engine, sweep=sweep)
    if fits:
        runs = runs or MlflowClient(settings)
        read = _reader(engine)
        for stored in reversed(fits):
            _project(engine, runs, stored, read)
    return len(fits)


def _reader(engine: Engine) -> Read:
    """Return what reads the jobs of fits: once for all fits of the same sweeps, and of curves those that are drawn."""

    @cache
    def jobs(sweeps: tuple[str, ...], *, curves: bool) -> list[JobMeasurement]:
        return measured(engine, sweeps, curves=curves, missing_ok=True)

    @cache
    def with_drawn_curves(sweeps: tuple[str, ...]) -> list[JobMeasurement]:
        rows = jobs(sweeps, curves=False)
        drawn = curves(engine, [row.job_id for row in with_curves(rows)])
        return [replace(row, curve=tuple(drawn.get(row.job_id, ()))) for row in rows]

    def read(fit: Fit) -> list[JobMeasurement]:
        if fit.options.get("layer") is not None:  # their losses at that layer are in the curves
            return jobs(fit.sweeps, curves=True)
        return with_drawn_curves(fit.sweeps) if LAWS[fit.law].reads_curves else jobs(fit.sweeps, curves=False)

    return read


def _project(engine: Engine, runs: MlflowClient, stored: StoredFit, read: Read) -> None:
    experiment = _experiment(engine, runs, stored.fit.sweeps[0])
    payload = cache(lambda: _payload(stored.fit))  # as long as thousands of points: written out only where it is needed
    run = runs.known(stored.mlflow_run_id) or _found_or_made(runs, stored, experiment, payload)
    if run != stored.mlflow_run_id:
        store.shipped(engine, stored.id, mlflow_run_id=run)
    if stored.superseded_by is not None:
        runs.tag(run, "orch.superseded_by", str(stored.superseded_by))
    if not runs.is_finished(run):
        _fill(runs, run, stored, payload(), read(stored.fit))
        runs.end(run, "FINISHED", at=stored.created_at)


def _found_or_made(runs: MlflowClient, stored: StoredFit, experiment: str, payload: Callable[[], str]) -> str:
    digest = hashlib.sha256(payload().encode()).hexdigest()[:32]
    identity = {"orch.kind": "fit", "orch.fit_id": stored.id, "orch.fit_sha256": digest}
    found = runs.find(None, experiment, identity)
    if found is not None:
        return found
    held = "".join(f", {part}" for part in (stored.fit.group, stored.fit.hook) if part)
    tags = {**identity, "orch.law": stored.fit.law, "orch.sweeps": ", ".join(stored.fit.sweeps)}
    return runs.create(experiment, f"fit {stored.id}: {stored.fit.law}{held}", tags=tags, at=stored.created_at)


def _experiment(engine: Engine, runs: MlflowClient, name: str) -> str:
    with reading(engine) as session:
        row = session.scalars(select(SweepRow).filter_by(name=name)).one()
        known, number = row.mlflow_experiment_id, row.id
    experiment = runs.experiment(name, known=known, number=number)
    if experiment != known:
        queue.set_mlflow(engine, sweep_id=number, mlflow_id=experiment)
    return experiment


def _fill(runs: MlflowClient, run: str, stored: StoredFit, payload: str, rows: Sequence[JobMeasurement]) -> None:
    fit = stored.fit
    facts = {"law": fit.law, "form": fit.form, "equation": fit.equation, "group": fit.group, "subject": fit.subject}
    facts |= {"hook": fit.hook, "data": fit.data, "activation": fit.activation}
    told = {"sweeps": ", ".join(fit.sweeps), "jobs": ", ".join(map(str, fit.jobs)), "version": stored.version}
    options = {f"options.{_plain(name)}": value for name, value in fit.options.items()}
    runs.params(run, facts | told | options | {"n_bootstrap": fit.n_bootstrap, "commit": stored.commit or ""})
    values = {name: value for name, value in measures(fit).items() if math.isfinite(value)}
    runs.measures(run, [Measure(f"fit/{name}", value, 0, stored.created_at) for name, value in values.items()])
    with TemporaryDirectory(prefix="orch-") as folder:
        whole = Path(folder, "fit.json")
        whole.write_text(payload, encoding="utf-8")
        runs.add_file(run, whole, "fit")
        for file in _figures(rows, fit, Path(folder)):
            runs.add_file(run, file, "figures")


def measures(fit: Fit) -> dict[str, float]:
    """Return a fit's numbers by names that MLflow takes."""
    found: dict[str, float] = {}
    for name, value in fit.coefficients.items():
        found |= {name: value.value, f"{name}.low": value.low, f"{name}.high": value.high}
    for score in fit.scores:
        form = _plain(score.form.replace("+", "with_"))
        scored = {"aicc": score.aicc, "rms": score.rms, "holdout_error": score.holdout_error}
        found |= {f"{name}.{form}": value for name, value in scored.items() if value is not None}
    single = {"holdout_error": fit.holdout_error, "seed_sigma": fit.seed_sigma, "jobs": float(len(fit.jobs))}
    if fit.irreducible is not None:
        single |= {"irreducible.low": fit.irreducible[0], "irreducible.high": fit.irreducible[1]}
    return found | {name: value for name, value in single.items() if value is not None}


def _figures(rows: Sequence[JobMeasurement], fit: Fit, folder: Path) -> list[Path]:
    """Draw the law and its residuals into a folder."""
    names = [name for name in figure_names() if law_of(name) == fit.law]
    files = []
    for drawing in filter(None, (draw(name, rows, [fit]) for name in (*names, "residuals"))):
        files.append(folder / f"{drawing.name}.svg")
        files[-1].write_text(svg(drawing, inline=False), encoding="utf-8")
    return files


def _payload(fit: Fit) -> str:
    return json.dumps(_finite(mask_all(fit.values())), ensure_ascii=False, indent=1, sort_keys=True)


def _finite(value: object) -> object:
    """Return a value as JSON can hold it: what is not finite is null."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_-. /" else "_" for letter in name).strip("_")
