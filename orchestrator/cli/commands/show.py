"""`orch show`: everything about one job."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.budget_notes import dead_note, passes_text
from orchestrator.cli.display.columns import limit_cell, progress_cell, state_cell, why
from orchestrator.cli.display.evaluation_tables import family_columns
from orchestrator.cli.display.formats import active_latents, clock, passes, ratio, scientific, share, sparkline
from orchestrator.cli.display.job_facts import place_facts
from orchestrator.cli.display.lens_tables import lens_curve_columns, nats
from orchestrator.cli.display.records import csv_text, plain, record
from orchestrator.cli.display.tables import Column, table
from orchestrator.cli.selection import database, job_argument, job_rows, output_option
from orchestrator.formatting import NONE, count, duration

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.curves.point import LayerPoint
    from orchestrator.results import JobRow
    from orchestrator.settings import Settings

_NEAR_TARGET = 0.1
"""Relative difference of L0 from `sae.target_l0` up to which that counts as reached."""


@click.command()
@job_argument()
@click.option("--attempts", "part", flag_value="attempts", help="Its attempts: who, how long, how they ended.")
@click.option("--events", "part", flag_value="events", help="All that happened to it.")
@click.option("--config", "part", flag_value="config", help="Its config, as JSON.")
@click.option("--checkpoints", "part", flag_value="checkpoints", help="Its checkpoints.")
@click.option("--curve", "part", flag_value="curve", help="Its loss curve.")
@output_option("json", "csv")
def show(*, job: int, part: str | None, output: str | None) -> None:
    """Show everything about one job."""
    if part == "config" and output == "csv":
        raise click.UsageError("-o csv has no rows to print of a config: --config prints JSON.")
    from orchestrator import lenses, results

    with database() as (settings, engine):
        (row,) = results.located(settings, job_rows(engine, [str(job)]))
        if part == "config":
            terminal.echo(json.dumps(results.config(engine, job), indent=2, ensure_ascii=False))
            return
        if part is None:
            _SUMMARIES[row.kind](settings, engine, row, output)
            return
        is_lens_curve = part == "curve" and row.kind == "lens"
        rows: Sequence[Any] = (lenses.curve if is_lens_curve else getattr(results, part))(engine, job)
        if part == "checkpoints":
            rows = [replace(row, uri=settings.artifact(row.uri)) for row in rows]
    if output:
        _print_records(part, rows, output)
    elif not rows:
        terminal.note(f"Job {job} has no {'points of a curve' if part == 'curve' else part} yet.")
    else:
        columns = lens_curve_columns(rows) if is_lens_curve else _COLUMNS[part]
        for line in table(rows, columns, width=terminal.width()):
            terminal.echo(line)
        if part == "curve" and not is_lens_curve:
            terminal.note(_ON_CURVES)


def _print_summary(settings: "Settings", engine: "Engine", row: "JobRow", output: str | None) -> None:
    from orchestrator import results

    if output == "csv":
        terminal.echo(csv_text([record(row)]))
        return
    counts = [record(found) for found in results.convergence(engine, row.id)]
    if output == "json":
        terminal.echo_json(terminal.envelope("show", [record(row) | {"convergence": counts}]))
        return
    points = results.curve(engine, row.id)
    place = place_facts(results.config(engine, row.id, asked=True), results.attempts(engine, row.id))
    facts = [
        *_facts(row, dead=_dead_latents(engine, row)),
        *_layers(points[-1].by_layer if points else None),
        ("target L0", _target(engine, row)),
        ("curve", sparkline([point.fvu for point in points], 32)),
    ]
    _print_facts(row, [*place, *facts, *_counts(counts), *_files(settings, row)])
    terminal.note(
        f"\nMore: orch show {row.id} --attempts | --events | --config | --checkpoints | --curve, orch logs {row.id}"
    )


def _print_facts(row: "JobRow", facts: "Sequence[tuple[str, str]]") -> None:
    title = f"job {row.id}  {row.sweep}  {state_cell(row, drawn=terminal.is_live())}"
    terminal.echo(terminal.style(title, bold=True) + (f"  {why(row)}" if why(row) else ""))
    for name, value in facts:
        if value and value != NONE:
            terminal.echo(f"  {terminal.style(f'{name:<14}', dim=True)}{value}")


def _print_evaluation(settings: "Settings", engine: "Engine", row: "JobRow", output: str | None) -> None:
    from orchestrator import results
    from orchestrator.evaluation.evaluation_rows import evaluations

    (found,) = evaluations(engine, ids=[row.id])
    if output == "csv":
        terminal.echo(csv_text([plain(found.flat())]))
        return
    if output:
        terminal.echo_json(terminal.envelope("show", [plain(found.flat())]))
        return
    place = place_facts(results.config(engine, row.id), results.attempts(engine, row.id))
    _print_facts(row, [
        ("SAE", found.sae or "gone"), *place, ("metrics", ", ".join(found.metrics)),
        ("measured on", f"{count(row.max_tokens)} tokens"), ("seed", f"{row.seed}, priority {row.priority}"),
        *_times(row), *_files(settings, row),
    ])  # fmt: skip
    if found.families:
        terminal.echo()
        for line in table(found.families, family_columns(), width=terminal.width()):
            terminal.echo(line)
    scores = f"orch results {found.sae} --long, " if found.sae and found.measured else ""
    terminal.note(f"\nMore: {scores}orch show {row.id} --attempts | --events | --config, orch logs {row.id}")


def _print_lens(settings: "Settings", engine: "Engine", row: "JobRow", output: str | None) -> None:
    from orchestrator import lenses, results
    from orchestrator.lenses.lens_progress import so_far

    found = so_far(engine, lenses.of_jobs(engine, [row.id]))
    if output:
        lens = [record(one) for one in found]
        values = record(row) | {"lens": lens[0] if lens else None}
        values |= {"convergence": [record(one) for one in results.convergence(engine, row.id)]}
        terminal.echo(csv_text([values])) if output == "csv" else terminal.echo_json(
            terminal.envelope("show", [values])
        )
        return
    place = place_facts(results.config(engine, row.id), results.attempts(engine, row.id))
    points = lenses.curve(engine, row.id)
    _print_facts(row, [
        ("lens", found[0].label if found else "gone"), *place,
        ("training", f"lr {row.lr:g}, seed {row.seed}, priority {row.priority}"),
        ("progress", f"{progress_cell(row, 24)}  {count(row.tokens_seen)} of {count(row.max_tokens)} tokens"),
        ("kl", nats(points[-1].kl) if points else NONE), ("curve", sparkline([point.kl for point in points], 32)),
        *_times(row), *_files(settings, row),
    ])  # fmt: skip
    terminal.note(
        f"\nMore: orch lens show {row.id}, orch show {row.id} --attempts | --events | --config | --checkpoints | "
        f"--curve, orch logs {row.id}"
    )


_SUMMARIES = {"train": _print_summary, "evaluate": _print_evaluation, "lens": _print_lens}


def _facts(row: "JobRow", *, dead: str) -> list[tuple[str, str]]:
    speed = f", {count(row.tokens_per_second)} tokens/s" if row.tokens_per_second else ""
    gain = f" (untrained {ratio(row.untrained_fvu)})" if row.untrained_fvu is not None else ""
    return [
        ("SAE", f"n_latents {row.n_latents or 'auto'}, k {row.k}, d_model {row.d_model or NONE}"),
        ("training", f"lr {'auto' if row.lr is None else f'{row.lr:g}'}, seed {row.seed}, priority {row.priority}"),
        ("budget", _budget(row)),
        ("progress", f"{progress_cell(row, 24)}  {count(row.tokens_seen)} of {count(row.max_tokens)} tokens{speed}"),
        ("passes", _text(row)),
        ("fvu", f"{ratio(row.fvu)}{gain}"),
        ("L0", NONE if row.l0 is None else f"{row.l0:.2f} latents per token, k {row.k}"),
        ("dead latents", dead),
        ("L∞", limit_cell(row)),
        *_times(row),
    ]


def _times(row: "JobRow") -> list[tuple[str, str]]:
    return [
        ("attempt", f"{row.attempt}, {row.failures} failed, {row.preemptions} preempted" if row.attempt else NONE),
        ("worker", f"{row.worker}, lease {duration(row.lease_left)}" if row.worker and row.lease_left else NONE),
        ("created", clock(row.created_at)),
        ("started", clock(row.started_at)),
        ("finished", clock(row.finished_at)),
    ]


def _layers(found: "Sequence[LayerPoint] | None") -> list[tuple[str, str]]:
    """Return what the last point found at each layer, one under the other."""
    measures: list[tuple[str, Callable[[LayerPoint], str]]] = [
        ("layer", lambda one: str(one.layer)),
        ("fvu", lambda one: ratio(one.fvu)),
        ("L0", lambda one: active_latents(one.l0)),
        ("dead latents", lambda one: share(one.dead_share)),
    ]
    rows = [(name, [cell(one) for one in found or ()]) for name, cell in measures]
    width = max((len(cell) for _, cells in rows for cell in cells), default=0)
    return [(name, "  ".join(cell.rjust(width) for cell in cells)) for name, cells in rows]


def _target(engine: "Engine", row: "JobRow") -> str:
    """Return how far L0 is from the one asked for, and the weight of the penalty that led there."""
    from orchestrator import results

    target, curve = results.config(engine, row.id)["sae"].get("target_l0"), results.curve(engine, row.id)
    if target is None or row.l0 is None or not curve:
        return "" if target is None else f"{target}, not measured yet"
    off = row.l0 / target - 1
    where = f"{share(abs(off))} {'above' if off > 0 else 'below'} it"
    missed = "" if abs(off) <= _NEAR_TARGET else ", not reached"
    coef = curve[-1].sparsity_coef
    is_led = coef is not None and math.isfinite(coef)
    how = f"sae.sparsity_coef found: {coef:.4g}" if is_led else f"by the penalty (L0 / {target} − 1)²"
    return f"{target}, L0 is {where}{missed}; {how}"


def _budget(row: "JobRow") -> str:
    asked = row.asked_max_tokens
    return "" if asked is None else f"extended from {count(asked)} to {count(row.max_tokens)} tokens"


def _text(row: "JobRow") -> str:
    """Return how often the budget reads the text, once an attempt has told how long that is."""
    from orchestrator.estimates.text_size import TextSize

    if not row.trainable_tokens:
        return ""
    text = TextSize(row.trainable_tokens, "")
    so_far = f", {passes(text.passes(row.tokens_seen))} so far" if row.tokens_seen < row.max_tokens else ""
    repeats = "; past the first, no text is new" if (row.passes or 0) > 1 else ""
    return f"{passes_text(text, row.max_tokens)} in the whole budget{so_far}{repeats}"


def _dead_latents(engine: "Engine", row: "JobRow") -> str:
    """Return the share of dead latents, or that there is none to measure, and what to set."""
    from orchestrator.results.stored_configs import configs

    if row.dead_share is None and (note := dead_note(configs(engine, [row.id])[row.id], row.d_model)):
        return f"{NONE}: {note.text} {note.hint}"
    return share(row.dead_share)


def _counts(counts: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (
            f"T({100 * c['epsilon']:g}%)",
            _tokens(c) if c["tokens"] else f"> {count(c['lower_bound'])} tokens",
        )
        for c in counts
        if c["tokens"] or c["lower_bound"]
    ]


def _tokens(found: dict[str, Any]) -> str:
    interval = f" (90%: {count(found['low'])} to {count(found['high'])})" if found["low"] else ""
    return f"{count(found['tokens'])} tokens{interval}"


def _files(settings: "Settings", row: "JobRow") -> list[tuple[str, str]]:
    log = settings.log_file(row.id, row.attempt)
    return [
        ("config", row.config_id),
        ("MLflow run", row.mlflow_run_id or ""),
        ("SAE at", _place(row.artifact_uri or "")),
        ("log", str(log) if log.exists() else ""),
    ]


def _place(uri: str) -> str:
    from pathlib import Path

    return uri if not uri or Path(uri).exists() else f"{uri}, which is not on this machine"


def _print_records(part: str, rows: Sequence[Any], output: str) -> None:
    records = [record(row) for row in rows]
    if output == "csv":
        terminal.echo(csv_text(records))
    else:
        terminal.echo_json(terminal.envelope(part, records))


_ON_CURVES = """
AUX: what AuxK's dead latents leave of the SAE's error, ‖e − ê‖² / ‖e‖²: 1 where they predict nothing, above it where
they make it worse; of the steps since the point before. – while no latent is dead, as is DEAD while none can be."""


def _column(title: str, cell: Callable[[Any], str], *, left: bool = False) -> Column[Any]:
    return Column(title, cell, right=not left)


_COLUMNS: dict[str, list[Column[Any]]] = {
    "attempts": [
        _column("ATT", lambda a: str(a.attempt)),
        _column("WORKER", lambda a: a.worker, left=True),
        _column("DEVICE", lambda a: a.device, left=True),
        _column("STARTED", lambda a: clock(a.started_at), left=True),
        _column("TIME", lambda a: duration(a.ended_at - a.started_at) if a.ended_at else "running"),
        _column("FROM", lambda a: count(a.tokens_start)),
        _column("TO", lambda a: count(a.tokens_end)),
        _column("EXIT", lambda a: NONE if a.exit_code is None else str(a.exit_code)),
        _column("OUTCOME", lambda a: a.outcome or NONE, left=True),
        _column("ERROR", lambda a: (a.error or "").partition("\n")[0], left=True),
    ],
    "events": [
        _column("AT", lambda e: clock(e.at), left=True),
        _column("ATT", lambda e: str(e.attempt or "")),
        _column("EVENT", lambda e: e.kind, left=True),
        _column("", lambda e: " ".join(f"{k}={v}" for k, v in (e.data or {}).items() if v is not None), left=True),
    ],
    "checkpoints": [
        _column("ATT", lambda c: str(c.attempt)),
        _column("TOKENS", lambda c: count(c.tokens_seen)),
        _column("AT", lambda c: clock(c.created_at), left=True),
        _column("SHA256", lambda c: c.sha256[:12], left=True),
        _column("URI", lambda c: c.uri, left=True),
    ],
    "curve": [
        _column("TOKENS", lambda p: count(p.tokens_seen)),
        _column("FVU", lambda p: ratio(p.fvu)),
        _column("FVU RAW", lambda p: ratio(p.fvu_raw)),
        _column("LOSS", lambda p: ratio(p.loss)),
        _column("AUX", lambda p: ratio(p.aux_loss / p.aux_nothing if p.aux_loss and p.aux_nothing else None)),
        _column("DEAD", lambda p: share(p.dead_share)),
        _column("L0", lambda p: active_latents(p.l0)),
        _column("GRAD", lambda p: f"{p.grad_norm:.3g}"),
        _column("TIME", lambda p: duration(p.wall_seconds)),
        _column("FLOPS", lambda p: scientific(p.flops_dense)),
    ],
}
