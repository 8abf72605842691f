"""The live view of a queue as lines: an overall bar, the jobs that fit, the workers."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import COLOURS, MARKS, done_share, job_columns
from orchestrator.cli.display.formats import bar, sparkline
from orchestrator.cli.display.tables import cut, table, visible

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.results import JobRow

SPARK_WIDTH = 12
DISPLAY_ORDER = ("running", "failed", "paused", "queued", "succeeded", "cancelled")
"""States of jobs, those to show first where not all jobs fit."""
_OTHER_LINES = 6
"""Lines that are no job: two above and below, the table's header, the prompt."""


@dataclass(frozen=True)
class Snapshot:
    """What was read from the database at one moment."""

    rows: "Sequence[JobRow]"
    workers: Sequence[str] = ()
    sparklines: Mapping[int, str] = field(default_factory=dict)
    """By job."""
    notice: str = ""
    """Shown instead of the workers."""
    evaluations: Mapping[str, int] = field(default_factory=dict)
    """Evaluation jobs by state."""


class Sparklines:
    """Sparklines of the curves of jobs, each read again only after a new point."""

    def __init__(self, engine: "Engine") -> None:
        """Read from this database."""
        self._engine = engine
        self._known: dict[int, tuple[tuple[object, ...], str]] = {}

    def of(self, rows: "Sequence[JobRow]") -> dict[int, str]:
        """Return the sparkline of every job that has a curve."""
        from orchestrator import results

        for row in rows:
            mark = (row.state, row.attempt, row.fvu)
            if row.fvu is not None and self._known.get(row.id, ((), ""))[0] != mark:
                values = [point.fvu for point in results.curve(self._engine, row.id)]
                self._known[row.id] = (mark, sparkline(values, SPARK_WIDTH))
        return {row.id: self._known[row.id][1] for row in rows if row.id in self._known}


def screen(snapshot: Snapshot, *, size: os.terminal_size, title: str, clock: str) -> list[str]:
    """Return the lines to draw, no more than fit."""
    width, height = size
    rows = first_shown(snapshot.rows, max(1, height - _OTHER_LINES))
    columns = job_columns(snapshot.rows, drawn=True, curve=lambda row: _sparkline(row, snapshot))
    lines = table(rows, columns, width=width)
    if len(rows) < len(snapshot.rows):
        lines.append(terminal.style(f"… {len(snapshot.rows) - len(rows)} more", dim=True))
    return [title_line(snapshot, title=title, width=width, clock=clock), "", *lines, "", _footer(snapshot, width)]


def title_line(snapshot: Snapshot, *, title: str, width: int, clock: str) -> str:
    """Return the title, the overall bar, how many jobs are in which state, the time."""
    part = done_share(snapshot.rows)
    done, left = bar(part, max(8, min(32, width // 4)))
    drawn = terminal.style(done, fg="green" if part == 1 else "cyan") + terminal.style(left, fg="bright_black")
    counts = "  ".join(state_counts(count_states(snapshot.rows)))
    line = f"{terminal.style(title, bold=True)}  {drawn} {int(part * 100)}%  {counts}"
    space = width - visible(line) - len(clock)
    return line + " " * space + terminal.style(clock, dim=True) if clock and space > 1 else cut(line, width)


def count_states(rows: "Sequence[JobRow]") -> dict[str, int]:
    """Count jobs by state."""
    return {state: sum(row.state == state for row in rows) for state in DISPLAY_ORDER}


def state_counts(counts: Mapping[str, int]) -> list[str]:
    """Return the states that occur, each with its mark and count."""
    return [
        terminal.style(f"{MARKS[state]} {counts[state]} {state}", fg=COLOURS[state])
        for state in DISPLAY_ORDER
        if counts.get(state)
    ]


def first_shown(rows: "Sequence[JobRow]", room: int) -> "list[JobRow]":
    """Return the jobs to show, in order of their ids: what runs, failed or waits before what is done."""

    def rank(row: "JobRow") -> tuple[int, int]:
        is_done = row.state in ("succeeded", "cancelled")
        return DISPLAY_ORDER.index(row.state), -row.id if is_done else row.id  # of what is done, the newest first

    return sorted(sorted(rows, key=rank)[:room], key=lambda row: row.id)


def _sparkline(row: "JobRow", snapshot: Snapshot) -> str:
    return terminal.style(snapshot.sparklines.get(row.id, ""), fg=COLOURS[row.state])


def _footer(snapshot: Snapshot, width: int) -> str:
    names = sorted(set(snapshot.workers))
    work = f"workers: {', '.join(names)}" if names else "no worker is at work"
    evaluations = "  ".join(state_counts(snapshot.evaluations))
    work += f"  ·  evaluations: {evaluations}" if evaluations else ""
    return cut(
        terminal.style(snapshot.notice, fg="yellow") if snapshot.notice else terminal.style(work, dim=True), width
    )
