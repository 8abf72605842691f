"""The progress of `orch demo`: redrawn in place on a terminal, lines elsewhere."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import done_share, why
from orchestrator.cli.display.formats import loss
from orchestrator.cli.display.live_canvas import LiveCanvas
from orchestrator.cli.display.queue_view import Snapshot, Sparklines, count_states, screen
from orchestrator.formatting import count, duration
from orchestrator.job_states import TERMINAL

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.results import JobRow

LINE_SECONDS = 10.0


class ProgressView(Protocol):
    """Shows jobs, each time they were read again."""

    def show(self, rows: "Sequence[JobRow]", *, notice: str = "") -> None:
        """Show how far the jobs are."""


@contextmanager
def progress_view(engine: "Engine", *, title: str) -> Iterator[ProgressView]:
    """Open the view that fits standard output."""
    if not terminal.is_live():
        yield LineView()
        return
    with LiveCanvas() as canvas:
        yield LiveView(engine, canvas, title)


class LiveView:
    """Draws the jobs over what it drew before."""

    def __init__(self, engine: "Engine", canvas: LiveCanvas, title: str) -> None:
        """Draw on this canvas."""
        self._sparklines, self._canvas, self._title = Sparklines(engine), canvas, title
        self._began = time.monotonic()
        self._last: Snapshot | None = None

    def show(self, rows: "Sequence[JobRow]", *, notice: str = "") -> None:
        """Draw; without rows the last ones stay, with the notice."""
        if rows or self._last is None:
            workers = [row.worker for row in rows if row.worker and row.state == "running"]
            self._last = Snapshot(rows, workers, self._sparklines.of(rows), notice)
        shown = self._last if rows else replace(self._last, notice=notice)
        elapsed = duration(time.monotonic() - self._began)
        self._canvas.draw(screen(shown, size=self._canvas.size, title=self._title, clock=elapsed))


class LineView:
    """Prints a line for each job that ends, and one about all of them from time to time."""

    def __init__(self) -> None:
        """Begin now."""
        self._began = time.monotonic()
        self._next = self._began + LINE_SECONDS
        self._ended: set[int] | None = None

    def show(self, rows: "Sequence[JobRow]", *, notice: str = "") -> None:
        """Print what is new."""
        ended = [row for row in rows if row.state in TERMINAL]
        known = {row.id for row in ended} if self._ended is None else self._ended
        elapsed = duration(time.monotonic() - self._began)
        for row in (row for row in ended if row.id not in known):
            said = f"{loss(row.fvu, row.l0)} after {count(row.tokens_seen)} tokens" if row.fvu is not None else ""
            name = f"job {row.id} (n {row.n_latents or 'auto'}, k {row.k}) {row.state}"
            told = ", ".join(filter(None, (said, why(row))))
            terminal.echo(f"{elapsed:>6}  {name}" + (f": {told}" if told else ""))
        self._ended = known | {row.id for row in ended}
        if time.monotonic() >= self._next:
            self._next += LINE_SECONDS
            counts = ", ".join(f"{number} {state}" for state, number in count_states(rows).items() if number)
            terminal.echo(f"{elapsed:>6}  {done_share(rows):.0%} done: {counts}" + (f" ({notice})" if notice else ""))
