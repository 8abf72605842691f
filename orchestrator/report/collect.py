"""What a report shows, read from the database; laws without a fit since the last job ended are fitted now."""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any

from sqlalchemy import Engine, select

from orchestrator.database import models as m
from orchestrator.database.engine import db_now, reading
from orchestrator.errors import FitError
from orchestrator.evaluation.job_scores import sweep_scores, with_scores
from orchestrator.fits import store
from orchestrator.fits.forecast_inputs import is_current
from orchestrator.report.page_data import Contents, Missing, Origin, SweepText
from orchestrator.results.fit_rows import measured
from orchestrator.results.selectors import sweep_ids
from orchestrator.results.stored_configs import last_ended
from orchestrator.scaling.fit.fitting import fit
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.laws.registry import LAWS, laws_to_fit
from orchestrator.scaling.types import Fit, JobMeasurement, LawName, StoredFit


def collect_contents(
    engine: Engine, sweeps: Sequence[str], *, database: str = "", laws: Sequence[LawName] | None = None
) -> Contents:
    """Return the contents of a report on some sweeps; fits that are made for it are stored.

    `database`: its address. `laws`: those to fit; None: all.

    Raises:
        NotFound: there is no such sweep.
        StorageError: the database did not answer.
    """
    texts, at = _sweeps(engine, sweeps)
    scores = sweep_scores(engine, sweeps)
    rows = with_scores(measured(engine, list(sweeps)), scores)
    missing = renew(engine, sweeps, rows, laws=laws)
    fits, last = fits_of(engine, sweeps), last_ended(engine, sweeps)
    return Contents(
        sweeps=texts, rows=tuple(rows), origins=_origins(engine, rows),
        fits=tuple(fits), missing=missing, database=database,
        at=at, version=metadata.version("orch"),
        scored_on=scores.texts,
        stale=frozenset(stored.id for stored in fits if not is_current(stored, rows, last)),
    )  # fmt: skip


def renew(
    engine: Engine, sweeps: Sequence[str], rows: Sequence[JobMeasurement], *, laws: Sequence[LawName] | None = None
) -> dict[LawName, Missing]:
    """Fit and store each law that has no fit since the last job ended; return why some laws cannot be fitted."""
    last = last_ended(engine, sweeps)
    stored = [one for one in fits_of(engine, sweeps) if "layer" not in one.fit.options]  # one layer is not the mean
    fresh = {one.fit.law for one in stored if is_current(one, rows, last)}
    missing: dict[LawName, Missing] = {}
    for law in laws_to_fit() if laws is None else laws:
        if law not in fresh:
            found, why = fit_everywhere(law, rows)
            if found:
                store.save(engine, [replace(one, sweeps=tuple(sorted(sweeps))) for one in found])
            elif why is not None:
                missing[law] = why
    return missing


def fit_everywhere(law: LawName, rows: Sequence[JobMeasurement]) -> tuple[list[Fit], Missing | None]:
    """Fit a law to each subject, hook point, text and activation there is; return the fits, and why one is lacking.

    Where some are fitted and some are not, the fits note why.
    """
    found: list[Fit] = []
    reasons: dict[str, Missing] = {}
    for where, options in _options(law, rows).items():
        try:
            found += fit(law, rows, options=options)
        except FitError as error:
            reasons[where] = Missing(error.message, error.hint)
    notes = tuple(f"Not fitted at {where}: {missing.why}." for where, missing in reasons.items() if where)
    return [replace(one, notes=one.notes + notes) for one in found], next(iter(reasons.values()), None)


def _options(law: LawName, rows: Sequence[JobMeasurement]) -> dict[str, FitOptions]:
    """Return the options of a fit by the words of each combination of what jobs differ in and a fit's jobs must not."""
    varied = [name for name in LAWS[law].grounds if len({getattr(row, name) for row in rows}) > 1]
    mixtures = dict.fromkeys(tuple(getattr(row, name) for name in varied) for row in rows)
    return {", ".join(mixture): FitOptions(**dict(zip(varied, mixture, strict=True))) for mixture in mixtures}


def fits_of(engine: Engine, sweeps: Sequence[str]) -> list[StoredFit]:
    """Return the newest fits of exactly these sweeps, in the order of the laws."""
    found = [one for one in store.newest(engine, sweep=sweeps[0]) if set(one.fit.sweeps) == set(sweeps)]
    order = list(LAWS)
    return sorted(found, key=lambda one: (order.index(one.fit.law), one.fit.subject, _by_number(one.fit.group)))


def _by_number(group: str) -> list[tuple[int, str]]:
    """Return a key that sorts groups such as `k=8` by their numbers."""
    parts = [(part, part.partition("=")[2]) for part in group.split(", ")]
    return [(int(value) if value.isdigit() else 0, part) for part, value in parts]


def _sweeps(engine: Engine, names: Sequence[str]) -> tuple[tuple[SweepText, ...], float]:
    columns = (m.SweepRow.name, m.SweepRow.labels, m.SweepRow.text, m.SweepRow.created_at)
    with reading(engine) as session:
        sweep_ids(session, names)
        found = session.execute(select(*columns).where(m.SweepRow.name.in_(names)))
        known = {row.name: _sweep(row) for row in found}
        now = session.execute(select(db_now())).scalar_one()
    return tuple(known[name] for name in names), float(now)


def _sweep(row: Any) -> SweepText:
    return SweepText(row.name, row.labels, row.text, row.created_at)


def _origins(engine: Engine, rows: Sequence[JobMeasurement]) -> dict[int, Origin]:
    sweeps = select(m.SweepRow.id).where(m.SweepRow.name.in_({row.sweep for row in rows}))
    columns = (m.Job.id, m.Job.config, m.Job.mlflow_run_id, m.Job.attempt)
    jobs = select(*columns).where(m.Job.sweep_id.in_(sweeps), m.Job.kind == "train")
    told = (
        select(m.Attempt.job_id, m.Attempt.facts)
        .join(m.Job, m.Job.id == m.Attempt.job_id)
        .where(m.Job.sweep_id.in_(sweeps), m.Job.kind == "train", m.Attempt.facts.is_not(None))
        .order_by(m.Attempt.attempt)
    )
    with reading(engine) as session:
        facts: dict[int, dict[str, Any]] = {row.job_id: row.facts or {} for row in session.execute(told)}
        stored = {row.id: row for row in session.execute(jobs)}
    return {row.job_id: _origin(stored[row.job_id], facts.get(row.job_id, {}), row) for row in rows}


def _origin(stored: Any, facts: dict[str, Any], row: JobMeasurement) -> Origin:
    last = row.curve[-1] if row.curve else None
    return Origin(
        config=json.loads(stored.config),
        mlflow_run_id=stored.mlflow_run_id,
        attempts=stored.attempt,
        commit=facts.get("git_commit"),
        versions=facts.get("versions") or {},
        subject_sha=(facts.get("subject") or {}).get("sha256"),
        flops=None if last is None else (last.flops_dense, last.flops_executed),
    )
