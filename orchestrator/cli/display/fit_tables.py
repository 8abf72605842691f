"""A fit as a person reads it: coefficients, forms, residuals, jobs left out; and as a program does."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli import terminal
from orchestrator.cli.display.formats import plural, scientific
from orchestrator.cli.display.tables import Column, table
from orchestrator.formatting import NONE, count, jobs_named, share

if TYPE_CHECKING:
    from orchestrator.scaling.types import Fit, Residual, Score, StoredFit

_JOBS_NAMED = 12
_NOTHING = 1e-9


def fit_lines(fit: "Fit", number: int | None, *, width: int | None) -> list[str]:
    """Return a fit as lines of text; `number` is its id where it is stored."""
    parts = [
        _head(fit, number),
        [f"  {line}" for line in _coefficients(fit)],
        [f"  {line}" for line in _forms(fit)],
        _said(fit),
        [f"  {line}" for line in _residuals(fit, width)],
        _excluded(fit),
        [f"  {terminal.style('note', dim=True)}  {note}" for note in fit.notes],
    ]
    return [line for part in parts if part for line in (*part, "")][:-1]


def fit_line(stored: "StoredFit") -> str:
    """Return a stored fit on one line: its number, what it is of, and which one superseded it."""
    from orchestrator.scaling.laws.registry import LAWS

    fit = stored.fit
    parts = (LAWS[fit.law].title, fit.group, fit.subject, fit.hook, f"form {fit.form}")
    newer = f", superseded by fit {stored.superseded_by}" if stored.superseded_by is not None else ""
    return f"fit {stored.id}: {', '.join(filter(None, parts))} ({', '.join(fit.sweeps)}){newer}"


def fit_record(fit: "Fit", number: int | None) -> dict[str, Any]:
    """Return a fit as a JSON object; without its draws, which are in the database."""
    values = fit.values()
    del values["draws"], values["medians"]
    values["coefficients"] = {
        name: one._asdict() | {"median": fit.medians.get(name)} for name, one in fit.coefficients.items()
    }
    return {"id": number, "jobs": list(fit.jobs), **values}


def _head(fit: "Fit", number: int | None) -> list[str]:
    from orchestrator.scaling.laws.registry import LAWS

    held = f"  {fit.group}" if fit.group else ""
    kept = f"  fit {number}" if number is not None else "  not stored"
    title = terminal.style(f"{LAWS[fit.law].title}{held}", bold=True)
    loss = {"l_inf": "; fvu here is L∞, the limit of each curve's tail"}.get(str(fit.options.get("loss")), "")
    return [
        f"{title}  {fit.subject}{f'  {fit.hook}' if fit.hook else ''}  ({', '.join(fit.sweeps)})"
        f"{terminal.style(kept, dim=True)}",
        f"  {fit.equation}   form {fit.form}{loss}",
    ]


def _coefficients(fit: "Fit") -> list[str]:
    columns: list[Column[str]] = [
        Column("COEFFICIENT", str),
        Column("VALUE", lambda name: _number(fit.coefficients[name].value), right=True),
        Column("MEDIAN", lambda name: _number(fit.medians.get(name)), right=True),
        Column(
            "90% INTERVAL",
            lambda name: f"{_number(fit.coefficients[name].low)} to {_number(fit.coefficients[name].high)}",
        ),
    ]
    return table(list(fit.coefficients), columns, width=None)


def _forms(fit: "Fit") -> list[str]:
    least = min((one.aicc for one in fit.scores if one.aicc is not None), default=0.0)
    columns: list[Column[Score]] = [
        Column("FORM", lambda one: f"{one.form}{' *' if one.form == fit.form else ''}"),
        Column("COEFFICIENTS", lambda one: str(one.n_coefficients), right=True),
        Column("AICC", lambda one: NONE if one.aicc is None else f"{one.aicc:.1f}", right=True),
        Column("Δ", lambda one: NONE if one.aicc is None else f"{one.aicc - least:.1f}", right=True),
        Column("RMS", lambda one: f"{one.rms:.2%}", right=True),
        Column("HELD OUT", lambda one: _percent(one.holdout_error), right=True),
    ]
    return table(fit.scores, columns, width=None)


def _said(fit: "Fit") -> list[str]:
    lines = []
    if fit.irreducible is not None:
        low, high = fit.irreducible
        lines.append(f"  irreducible term  {low:.4f} to {high:.4f} (90% profile interval)")
    if fit.holdout_error is not None:
        sigma = f"; seeds differ by {_percent(fit.seed_sigma)}" if fit.seed_sigma is not None else ""
        lines.append(
            f"  held out          {_percent(fit.holdout_error)} off at the largest n"
            f" ({_named(fit.holdout_jobs)}), fitted without it{sigma}"
        )
    else:
        lines.append("  held out          nothing: without its largest n too few sizes are left")
    failed = fit.options.get("refits that did not converge")
    told = f"; {failed} more did not converge" if failed else ""
    lines.append(f"  bootstrap         {plural(fit.n_bootstrap, 'refit')}, seed {fit.options.get('seed', 0)}{told}")
    return lines


def _residuals(fit: "Fit", width: int | None) -> list[str]:
    from orchestrator.scaling.laws.registry import LAWS
    from orchestrator.scaling.plots.sampling import sampled, told

    law = LAWS[fit.law]
    write = count if law.quantity.is_count else _number
    columns: list[Column[Residual]] = [
        Column("JOBS", lambda one: ",".join(map(str, one.jobs)), right=True),
        Column(
            "C" if law.is_over_compute else "N",
            lambda one: scientific(one.x) if law.is_over_compute else f"{one.x:g}",
            right=True,
        ),
        Column("K", lambda one: str(one.k or NONE), right=True),
        Column("OBSERVED", lambda one: f"{'>' if one.censored else ''}{write(one.observed)}", right=True),
        Column("PREDICTED", lambda one: write(one.predicted), right=True),
        Column("OFF BY", lambda one: f"{math.expm1(one.log_residual):+.2%}", right=True),
        Column("", lambda one: one.flagged, weight=1),
    ]
    if law.compares_subjects:
        columns.insert(1, Column("SUBJECT", lambda one: one.subject, weight=2))
    shown = sampled(fit.residuals, lambda one: one.jobs[0] if one.jobs else 0)
    lines = table(shown, columns, width=None if width is None else width - 2)
    few = told(shown, fit.residuals, "points")
    return [*lines, f"{few}; all of them: orch fit {' '.join(fit.sweeps)} -o json"] if few else lines


def _excluded(fit: "Fit") -> list[str]:
    """Say which jobs were left out: those of one reason on one line."""
    reasons: dict[str, list[int]] = {}
    for one in fit.excluded:
        reasons.setdefault(one.why, []).append(one.job_id)
    if not reasons:
        return [f"  used {plural(len(fit.jobs), 'job')}, left out none"]
    lines = [f"  used {plural(len(fit.jobs), 'job')}, left out {len(fit.excluded)}:"]
    return lines + [f"    {why}: {_named(jobs)}" for why, jobs in sorted(reasons.items(), key=lambda pair: pair[1])]


def _named(jobs: Sequence[int]) -> str:
    return jobs_named(sorted(jobs), most=_JOBS_NAMED)


def _number(value: float | None) -> str:
    """Write a number with four digits after the point, or four in all where that would say little."""
    if value is None:
        return NONE
    if abs(value) < _NOTHING:
        return "0"
    return f"{value:.4f}" if 0.01 <= abs(value) < 1000 else f"{value:.4g}"


def _percent(value: float | None) -> str:
    """Write a difference of logarithms as the part by which the larger of two exceeds the smaller."""
    return NONE if value is None else share(math.expm1(value), 2)
