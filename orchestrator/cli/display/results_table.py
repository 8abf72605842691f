"""The results of a sweep as a table, and where its files and pages are."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import COLOURS, convergence_cell
from orchestrator.cli.display.formats import active_latents, ratio, share
from orchestrator.cli.display.tables import Column, table
from orchestrator.formatting import NONE, Interval, count, interval

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Engine

    from orchestrator.results import JobRow
    from orchestrator.settings import Settings

UI = "http://127.0.0.1:5000"
_OUTCOMES = {"converged": "green", "max_tokens": "yellow", "not_learning": "red", "diverged": "red"}


def result_lines(
    rows: "Sequence[JobRow]", *, width: int | None, delta_ce: Mapping[int, Interval] = MappingProxyType({})
) -> list[str]:
    """Return the table of results, one line per job; `delta_ce`: of the jobs whose SAE was evaluated."""
    downstream: Column[JobRow] = Column("ΔCE", lambda row: _loss(delta_ce.get(row.id)), right=True)
    columns: list[Column[JobRow]] = [
        Column("JOB", lambda row: str(row.id), right=True),
        Column("N", lambda row: str(row.n_latents or "auto"), right=True),
        Column("K", lambda row: str(row.k), right=True),
        Column("FVU", lambda row: terminal.style(ratio(row.fvu), bold=True), right=True),
        Column("L0", lambda row: active_latents(row.l0), right=True),
        *([downstream] if delta_ce else []),
        Column("UNTRAINED", lambda row: ratio(row.untrained_fvu), right=True),
        Column("DEAD", lambda row: share(row.dead_share), right=True),
        Column("TOKENS", lambda row: count(row.tokens_seen), right=True, weight=5),
        Column("T(1%)", convergence_cell, right=True),
        Column("OUTCOME", _outcome),
        Column("MLFLOW RUN", lambda row: (row.mlflow_run_id or NONE)[:8], weight=4),
    ]
    return table(rows, columns, width=width)


def where_lines(settings: "Settings", engine: "Engine", sweep: str, *, report: "Path") -> list[str]:
    """Return where report, database, SAEs, MLflow and logs are, and the command that shows each."""
    from orchestrator import results
    from orchestrator.masking import mask
    from orchestrator.settings import place_of

    found = next((row for row in results.sweeps(engine) if row.name == sweep), None)
    experiment = found.mlflow_experiment_id if found else None
    server = settings.tracking if settings.tracking.startswith(("http://", "https://")) else UI
    page = (
        f"{mask(server).rstrip('/')}/#/experiments/{experiment}/runs" if experiment else "orch tracking sync fills it"
    )
    facts = (
        ("report", str(report), "figures, fits, jobs: open it in a browser"),
        ("database", place_of(settings.database), "orch status, orch show JOB --curve"),
        ("SAEs", str(settings.artifacts_folder), "orch show JOB names its files"),
        ("MLflow", page, "orch ui opens it" if server == UI else ""),
        ("logs", str(settings.logs_folder), "orch logs JOB"),
    )
    longest = max(len(where) for _, where, _ in facts)
    return [
        f"{terminal.style(f'{name:<9}', bold=True)} {where:<{longest}}   {terminal.style(hint, dim=True)}".rstrip()
        for name, where, hint in facts
    ]


def _loss(score: Interval | None) -> str:
    return NONE if score is None else interval(score)


def _outcome(row: "JobRow") -> str:
    text = row.outcome or row.state
    return terminal.style(text, fg=_OUTCOMES.get(text, COLOURS[row.state]))
