"""`orch top`: the workers and what runs, again and again."""

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
from orchestrator.cli.display.live_canvas import MIN_SECONDS, Canvas, Keys
from orchestrator.cli.display.queue_view import state_counts
from orchestrator.cli.display.tables import cut, table, visible
from orchestrator.cli.selection import database
from orchestrator.errors import StorageError
from orchestrator.formatting import count

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.results import JobRow, RegisteredWorker

_SHOWN = {"ID", "SWEEP", "N", "K", "SWEPT", "PROGRESS", "TOK/S", "ETA", "FVU", "WORKER"}
_CHROME = 7
"""Lines that are neither worker nor job: headline, two headers, three gaps, the footer."""


@dataclass(frozen=True)
class Scene:
    """What was read from the database at one moment."""

    workers: "Sequence[RegisteredWorker]" = ()
    running: "Sequence[JobRow]" = ()
    counts: Mapping[str, int] | None = None
    is_paused: bool = False
    remark: str = ""


@click.command()
@click.option("-n", "--every", type=click.FloatRange(min=0), default=1.0, show_default=True, metavar="SEC",
              help="Seconds between two looks.")  # fmt: skip
def top(*, every: float) -> None:
    """Watch workers and running jobs until q is pressed. Without a terminal, print them once."""
    with database() as (_, engine):
        if terminal.is_live():
            _watch(engine, max(MIN_SECONDS, every))
            return
        for line in scene_lines(_look(engine), width=terminal.width(), drawn=False):
            terminal.echo(line)


def _watch(engine: "Engine", seconds: float) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):  # the terminal is given back then, too
        signal.signal(number, signal.default_int_handler)
    scene = Scene()
    with Keys() as keys, Canvas() as canvas:
        while True:
            try:
                scene = _look(engine)
            except StorageError as error:
                if scene.counts is None:
                    raise
                scene = replace(scene, remark=f"{error.message} · looking again")
            canvas.draw(_picture(scene, canvas.size))
            if "q" in keys.pressed(seconds).lower():
                return


def _look(engine: "Engine") -> Scene:
    from orchestrator import results

    return Scene(
        workers=results.registered_workers(engine),
        running=results.jobs(engine, states=["running"]),
        counts=results.counts(engine),
        is_paused=results.paused_since(engine) is not None,
    )


def _picture(scene: Scene, size: os.terminal_size) -> list[str]:
    """Return the lines that fit; workers get half of them at most where there are many jobs."""
    room = max(2, size.lines - _CHROME)
    n_workers = min(len(scene.workers), max(room // 2, room - len(scene.running)))
    shown = replace(scene, workers=scene.workers[:n_workers], running=scene.running[: room - n_workers])
    hidden = (len(scene.workers) - len(shown.workers), len(scene.running) - len(shown.running))
    more = [plural(number, word) for number, word in zip(hidden, ("more worker", "more job"), strict=True) if number]
    said = click.style(scene.remark, fg="yellow") if scene.remark else click.style("q ends", dim=True)
    lines = scene_lines(shown, width=size.columns, drawn=True, rate=_rate(scene))
    return [*lines, "", cut("  ".join([said, *more]), size.columns)]


def scene_lines(scene: Scene, *, width: int | None, drawn: bool, rate: float | None = None) -> list[str]:
    """Return the headline, the workers and the running jobs; `rate` is in tokens/s, that of the scene by default."""
    counts = "  ".join(state_counts(scene.counts or {})) or "the queue is empty"
    paused = click.style("  paused", fg="yellow", bold=True) if scene.is_paused else ""
    head = f"{click.style('orch', bold=True)}  {counts}{paused}  {count(rate or _rate(scene))} tokens/s"
    now = clock(time.time())
    gap = 2 if width is None else width - visible(head) - len(now)
    lines = [head + " " * gap + click.style(now, dim=True) if gap > 1 else cut(head, width), ""]
    lines += table(scene.workers, worker_columns(), width=width) if scene.workers else ["no worker is there"]
    columns = [column for column in job_columns(scene.running, drawn=drawn) if column.title in _SHOWN]
    return [*lines, "", *(table(scene.running, columns, width=width) if scene.running else ["nothing runs"])]


def _rate(scene: Scene) -> float:
    return sum(row.tokens_per_second or 0.0 for row in scene.running)
