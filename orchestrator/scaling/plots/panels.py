"""How jobs are laid out in a figure: what tells the series of a panel apart, and what a panel has in common."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from orchestrator.formatting import count, named, tick
from orchestrator.scaling.plots.canvas import Pen, pens
from orchestrator.scaling.plots.naming import differing, in_order, place
from orchestrator.scaling.types import JobMeasurement

Rows = Sequence[JobMeasurement]
MOST_PANELS = 24


class Layout(NamedTuple):
    """The panels of a figure and the pens of its series."""

    panels: dict[str, list[JobMeasurement]]
    """By what their jobs have in common, in words."""
    series: Callable[[JobMeasurement], str]
    """What a job is told by within its panel, in words."""
    pens: dict[str, Pen]
    """By series."""
    left_out: str
    """Which panels there was no room for, as a sentence; empty: none."""


def laid_out(rows: Rows, *, by_budget: bool = False) -> Layout:
    """Lay out jobs: series are sizes; where all have one size they are the k, and where those are one too, the places.

    A place is a subject, hook point, text and activation, as far as they differ. `by_budget`: jobs of different budgets
    are in different panels.
    """
    differs = differing(rows)
    words: dict[str, Callable[[JobMeasurement], str]] = {
        "n": lambda row: f"n = {tick(row.n_latents or 0)}", "k": lambda row: f"k = {row.k}",
        "place": lambda row: place(row, differs), "budget": lambda row: f"{count(row.max_tokens)} tokens at most",
    }  # fmt: skip
    varied = [part for part, said in words.items() if len({said(row) for row in rows}) > 1]
    told_by = next((part for part in ("n", "k", "place") if part in varied), "n")
    shared = [part for part in ("place", "n", "k") if part != told_by]
    shared += ["budget"] if by_budget and "budget" in varied else []
    ordered = sorted(rows, key=lambda row: (in_order(place(row, differs)), row.k, row.n_latents or 0, row.max_tokens))
    panels: dict[str, list[JobMeasurement]] = {}
    for row in ordered:
        panels.setdefault(", ".join(filter(None, (words[part](row) for part in shared))), []).append(row)
    kept = dict(list(panels.items())[:MOST_PANELS])
    more = len(panels) - len(kept)
    left_out = (
        f" {named(more, 'panel')} more would not fit: {', '.join(list(panels)[MOST_PANELS:][:3])}, …" if more else ""
    )
    by_series = sorted(ordered, key=lambda row: row.n_latents or 0) if told_by == "n" else ordered
    return Layout(kept, words[told_by], pens(words[told_by](row) for row in by_series), left_out)
