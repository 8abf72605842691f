"""Evaluation jobs and scores as tables."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import COLOURS, state_cell, why
from orchestrator.cli.display.formats import active_latents, bar, clock
from orchestrator.cli.display.tables import Column
from orchestrator.formatting import NONE, count, duration

if TYPE_CHECKING:
    from orchestrator.evaluation.evaluation_rows import EvaluationRow, FamilyRow
    from orchestrator.evaluation.scores import ScoreEntry

_PARTS = ("_std_error", "_low", "_high")


def evaluation_columns(rows: "Sequence[EvaluationRow]", *, drawn: bool) -> "list[Column[EvaluationRow]]":
    """Return the columns for evaluation jobs."""
    columns: list[Column[EvaluationRow]] = [
        Column("ID", lambda row: str(row.id), right=True),
        Column("SWEEP", lambda row: row.sweep, weight=5),
        Column("SAE", lambda row: row.sae or NONE),
        Column("METRICS", lambda row: ", ".join(row.metrics), weight=8, least=12),
        Column("STATE", lambda row: state_cell(row.job, drawn=drawn)),
        Column("PROGRESS", lambda row: _progress(row, 12 if drawn else 0), right=True, weight=8),
        Column("WORKER", lambda row: row.job.worker or NONE, weight=1),
        Column("REASON", lambda row: why(row.job), weight=7, least=12),
    ]
    one_sweep = len({row.sweep for row in rows}) <= 1
    return [column for column in columns if not (one_sweep and column.title == "SWEEP")]


def family_columns() -> "list[Column[FamilyRow]]":
    """Return the columns for the metric families of one evaluation job."""
    return [
        Column("FAMILY", lambda row: row.family),
        Column("STATE", lambda row: terminal.style(row.state, fg="green" if row.state == "measured" else "red")),
        Column("ATT", lambda row: str(row.attempt), right=True),
        Column("TIME", lambda row: duration(row.wall_seconds), right=True),
        Column("TOKENS", lambda row: count(row.tokens), right=True),
        Column("AT", lambda row: clock(row.at), weight=5),
        Column("ERROR", lambda row: (row.error or "").partition("\n")[0], weight=8, least=12),
    ]


def long_columns() -> "list[Column[ScoreEntry]]":
    """Return the columns for scores, one a row."""
    return [
        Column("SAE", lambda row: row.sae),
        Column("FAMILY", lambda row: row.family, weight=6),
        Column("METRIC", lambda row: row.metric),
        Column("VARIANT", lambda row: row.variant or NONE),
        Column("VALUE", lambda row: number(row.value), right=True),
        Column("UNCERTAINTY", lambda row: uncertainty(row.std_error, row.low, row.high), right=True),
        Column("N", lambda row: count(row.n), right=True, weight=5),
        Column("TOKENS", lambda row: count(row.tokens), right=True, weight=4),
        Column("TEXT", lambda row: row.measured_on or NONE, weight=3),
        Column("OPTIONS", lambda row: row.measured_with or NONE, weight=2),
        Column("JOB", lambda row: str(row.job_id), right=True, weight=4),
        Column("STALE", lambda row: "stale" if row.is_stale else "", weight=2),
    ]


def wide_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column[Mapping[str, Any]]]:
    """Return the columns for SAEs with their scores."""
    from orchestrator.evaluation.scores import CONDITIONS

    names = list(rows[0]) if rows else []
    beside = {f"{name}{part}" for name in names for part in _PARTS}
    metrics = [name for name in names if name not in CONDITIONS and name not in beside]
    columns: list[Column[Mapping[str, Any]]] = [
        Column("SAE", lambda row: row["sae"]),
        Column("SWEEP", lambda row: row["sweep"] or NONE, weight=5),
        Column("PLACE", lambda row: row["place"] or NONE, weight=4),
        Column("N", lambda row: str(row["n_latents"]), right=True),
        Column("K", lambda row: str(row["k"] or NONE), right=True),
        Column("L0", lambda row: active_latents(row["l0"]), right=True, weight=6),
        *(_metric_column(name) for name in metrics),
        Column("TOKENS", lambda row: count(row["tokens"]), right=True, weight=3),
        *_measured_columns(rows, weight=8),
    ]
    return columns


def _measured_columns(rows: Sequence[Mapping[str, Any]], *, weight: int) -> list[Column[Mapping[str, Any]]]:
    """Return the columns that say on which text, and with which options, where rows differ in them."""
    columns: dict[str, Column[Mapping[str, Any]]] = {
        "measured_on": Column("TEXT", lambda row: row["measured_on"] or NONE, weight=weight),
        "measured_with": Column("OPTIONS", lambda row: row["measured_with"] or NONE, weight=weight),
    }
    return [column for name, column in columns.items() if len({row[name] for row in rows}) > 1]


def layer_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column[Mapping[str, Any]]]:
    """Return the columns for SAEs with their scores at each layer; * marks the lowest of those that compare."""
    sweeps = len({row["sweep"] for row in rows}) > 1
    layers = [name for name in rows[0] if name.removeprefix("layer_").isdecimal()]
    return [
        Column("METRIC", lambda row: f"{row['metric']}[{row['variant']}]" if row["variant"] else row["metric"]),
        Column("SAE", lambda row: row["sae"]),
        *([Column[Mapping[str, Any]]("SWEEP", lambda row: row["sweep"] or NONE, weight=5)] if sweeps else []),
        Column("TRAINED ON", lambda row: row["place"] or NONE, weight=6),
        Column("N", lambda row: str(row["n_latents"]), right=True),
        Column("K", lambda row: str(row["k"] or NONE), right=True),
        *(_layer_column(rows, name) for name in layers),
        Column("MEAN", lambda row: number(row["mean"]), right=True),
        Column("CV", lambda row: number(row["cv"]), right=True),
        *_measured_columns(rows, weight=3),
    ]


def _layer_column(rows: Sequence[Mapping[str, Any]], name: str) -> Column[Mapping[str, Any]]:
    from orchestrator.evaluation.layer_matrix import lowest

    best = {id(row) for row in lowest(rows, name)}
    title = name.replace("_", " ").upper()
    return Column(title, lambda row: f"{number(row[name])}{'*' if id(row) in best else ' '}", right=True, weight=8)


def _metric_column(name: str) -> Column[Mapping[str, Any]]:
    def cell(row: Mapping[str, Any]) -> str:
        sure = uncertainty(row.get(f"{name}_std_error"), row.get(f"{name}_low"), row.get(f"{name}_high"))
        return f"{number(row[name])} {sure}".rstrip() if row[name] is not None else NONE

    return Column(name.upper(), cell, right=True, weight=7)


def number(value: float | None) -> str:
    """Write a score with four digits that count."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.4f}" if 0.001 <= abs(value) < 100 or value == 0 else f"{value:.4g}"


def uncertainty(std_error: float | None, low: float | None, high: float | None) -> str:
    """Write how sure a score is: ±0.012, or the ends of its 90% interval."""
    if low is not None and high is not None:
        return f"[{number(low)}, {number(high)}]"
    return "" if std_error is None else f"±{std_error:.2g}"


def _progress(row: "EvaluationRow", width: int) -> str:
    done, left = bar(row.progress, width)
    text = f"{row.measured}/{len(row.metrics)}"
    if not width:
        return text
    return terminal.style(done, fg=COLOURS[row.job.state]) + terminal.style(left, fg="bright_black") + f" {text}"
