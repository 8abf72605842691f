"""SAEs as a table, one of them in full, and what several readings of one come to."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.cli import terminal
from orchestrator.cli.display.formats import active_latents, clock, ratio
from orchestrator.cli.display.tables import Column, table
from orchestrator.formatting import NONE, count

if TYPE_CHECKING:
    from orchestrator.saes import SaeEntry

_COLOURS = {"verified": "green", "unverified": "yellow", "refused": "red"}


def sae_columns(*, wide: bool) -> "list[Column[SaeEntry]]":
    """Return the columns for SAEs."""
    columns: list[Column[SaeEntry]] = [
        Column("SAE", lambda row: row.label),
        Column("FROM", lambda row: row.sweep or row.format, weight=6),
        Column("SUBJECT", lambda row: row.facts.subject or NONE, weight=7, least=12),
        Column("PLACE", _place, weight=7, least=8),
        Column("N", lambda row: str(row.facts.n_latents), right=True),
        Column("SELECTION", _selection),
        Column("NORM", lambda row: row.facts.normalize, weight=3),
        Column("FVU", lambda row: ratio(row.fvu), right=True),
        Column("L0", lambda row: active_latents(row.l0), right=True),
        Column("TOKENS", lambda row: count(row.measured_tokens), right=True, weight=2),
        Column("STATE", lambda row: terminal.style(row.state, fg=_COLOURS[row.state])),
    ]
    more: list[Column[SaeEntry]] = [
        Column("ID", lambda row: str(row.id), right=True),
        Column("FORMAT", lambda row: row.format),
        Column("SOURCE", lambda row: row.source),
        Column("FOLDER", lambda row: row.uri),
    ]
    return columns + (more if wide else [])


def sae_lines(row: "SaeEntry") -> list[str]:
    """Return all that is known of an SAE, a line each."""
    facts = row.facts
    reads = " of ".join(filter(None, (_place(row), facts.subject))) + (f" @ {facts.revision}" if facts.revision else "")
    measured = (
        f"fvu {ratio(row.fvu)} (raw activations: {ratio(row.fvu_raw)}), L0 {active_latents(row.l0)}, on "
        f"{count(row.measured_tokens)} tokens of {row.measured_on}"
    )
    stated = f"fvu {ratio(facts.stated_fvu)}, L0 {active_latents(facts.stated_l0)}"
    context = f"{facts.context_length} tokens" if facts.context_length else NONE
    shown = {
        "SAE": f"{row.label}  (sae:{row.id})",
        "From": f"job {row.job_id} of {row.sweep}" if row.job_id else f"{row.format}: {row.source}",
        "sha256": row.sha256,
        "Reads": reads,
        "Lens": facts.lens and f"{facts.lens}: it encodes and decodes in its space",
        "Predicts": facts.target_hook_point,
        "Sizes": f"{facts.n_latents} latents × {facts.d_model}, {facts.dtype}",
        "Selection": _selection(row),
        "Input": f"normalised: {facts.normalize}; decoder bias{' ' if facts.subtracts_bias else ' not '}subtracted",
        "Context": context + {True: ", BOS first", False: ", without BOS", None: ""}[facts.prepend_bos],
        "Stated": None if facts.stated_fvu is None and facts.stated_l0 is None else stated,
        "Measured": None if row.fvu is None and row.fvu_raw is None else measured,
        "State": f"{row.state}: {row.note}" if row.note else row.state,
        "Folder": row.uri,
        "Entered": clock(row.created_at),
    }
    width = max(map(len, shown)) + 2
    return [terminal.style(f"{name:<{width}}", dim=True) + text for name, text in shown.items() if text]


def convention_lines(conventions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of what each reading of an SAE's files comes to."""
    columns: list[Column[Mapping[str, Any]]] = [
        Column("CONVENTION", lambda row: row["name"]),
        Column("RAW FVU", lambda row: ratio(row["fvu"]), right=True),
        Column("L0", lambda row: active_latents(row["l0"]), right=True),
        Column("", lambda row: row.get("note", ""), weight=5),
    ]
    return table(conventions, columns, width=terminal.width()) if len(conventions) > 1 else []


def _place(row: "SaeEntry") -> str:
    facts = row.facts
    if facts.site is None or not facts.layers:
        return facts.hook_point or NONE
    return f"{facts.site} {','.join(map(str, facts.layers))}" + (f" lens {facts.lens[:8]}" if facts.lens else "")


def _selection(row: "SaeEntry") -> str:
    return row.facts.selection + (f" {row.facts.k}" if row.facts.k else "")
