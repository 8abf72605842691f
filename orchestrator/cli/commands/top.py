"""`orch top`: watch the workers and the running jobs."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import job_columns, worker_columns
from orchestrator.cli.display.formats import clock, plural
from orchestrator.cli.display.live_canvas import MIN_SECONDS, KeyInput, LiveCanvas
from orchestrator.cli.display.queue_view import state_counts
from orchestrator.cli.display.tables import cut, table, visible
from orchestrator.cli.selection import database
from orchestrator.errors import StorageError
from orchestrator.formatting import count

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.results import JobRow, RegisteredWorker

_SHOWN = {"ID", "SWEEP", "N", "K", "SWEPT", "PROGRESS", "TOK/S", "ETA", "FVU", "WORKER"}
_OTHER_LINES = 7
"""Lines that are neither worker nor job: title, two headers, three gaps, the footer."""


@dataclass(frozen=True)
class WorkersSnapshot:
    """What was read from the database at one moment."""

    workers: "Sequence[RegisteredWorker]" = ()
    running: "Sequence[JobRow]" = ()
    counts: Mapping[str, int] | None = None
    is_paused: bool = False
    notice: str = ""


@click.command()
@click.option("-n", "--every", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="SEC",
              help="Seconds between two looks.")  # fmt: skip
def top(*, every: float) -> None:
    """Watch workers and running jobs until q is pressed. Without a terminal, print them once."""
    with database() as (_, engine):
        if terminal.is_live():
            _watch(engine, max(MIN_SECONDS, every))
            return
        for line in snapshot_lines(_read(engine), width=terminal.width(), drawn=False):
            terminal.echo(line)


def _watch(engine: "Engine", seconds: float) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):  # the terminal is given back then, too
        signal.signal(number, signal.default_int_handler)
    snapshot = WorkersSnapshot()
    with KeyInput() as keys, LiveCanvas() as canvas:
        while True:
            try:
                snapshot = _read(engine)
            except StorageError as error:
                if snapshot.counts is None:
                    raise
                snapshot = replace(snapshot, notice=f"{error.message} · looking again")
            canvas.draw(_screen(snapshot, canvas.size))
            if "q" in keys.pressed(seconds).lower():
                return


def _read(engine: "Engine") -> WorkersSnapshot:
    from orchestrator import results

    return WorkersSnapshot(
        workers=results.registered_workers(engine),
        running=results.jobs(engine, states=["running"], kind=None),
        counts=results.counts(engine),
        is_paused=results.paused_since(engine) is not None,
    )


def _screen(snapshot: WorkersSnapshot, size: os.terminal_size) -> list[str]:
    """Return the lines that fit; workers get half of them at most where there are many jobs."""
    room = max(2, size.lines - _OTHER_LINES)
    n_workers = min(len(snapshot.workers), max(room // 2, room - len(snapshot.running)))
    shown = replace(snapshot, workers=snapshot.workers[:n_workers], running=snapshot.running[: room - n_workers])
    hidden = (len(snapshot.workers) - len(shown.workers), len(snapshot.running) - len(shown.running))
    more = [plural(number, word) for number, word in zip(hidden, ("more worker", "more job"), strict=True) if number]
    said = terminal.style(snapshot.notice, fg="yellow") if snapshot.notice else terminal.style("q ends", dim=True)
    lines = snapshot_lines(shown, width=size.columns, drawn=True, rate=_rate(snapshot))
    return [*lines, "", cut("  ".join([said, *more]), size.columns)]


def snapshot_lines(
    snapshot: WorkersSnapshot, *, width: int | None, drawn: bool, rate: float | None = None
) -> list[str]:
    """Return the title, the workers and the running jobs; `rate` (tokens/s) is by default the sum over these jobs."""
    counts = "  ".join(state_counts(snapshot.counts or {})) or "the queue is empty"
    paused = terminal.style("  paused", fg="yellow", bold=True) if snapshot.is_paused else ""
    head = f"{terminal.style('orch', bold=True)}  {counts}{paused}  {count(rate or _rate(snapshot))} tokens/s"
    now = clock(time.time())
    gap = 2 if width is None else width - visible(head) - len(now)
    lines = [head + " " * gap + terminal.style(now, dim=True) if gap > 1 else cut(head, width), ""]
    lines += table(snapshot.workers, worker_columns(), width=width) if snapshot.workers else ["no worker is there"]
    columns = [column for column in job_columns(snapshot.running, drawn=drawn) if column.title in _SHOWN]
    return [*lines, "", *(table(snapshot.running, columns, width=width) if snapshot.running else ["nothing runs"])]


def _rate(snapshot: WorkersSnapshot) -> float:
    return sum(row.tokens_per_second or 0.0 for row in snapshot.running)
