"""Who watches `orch demo`: a terminal gets a picture redrawn in place, a log gets lines."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import done_share, why
from orchestrator.cli.display.formats import duration, ratio
from orchestrator.cli.display.live_canvas import Canvas
from orchestrator.cli.display.queue_view import Curves, Snapshot, count_states, picture
from orchestrator.formatting import count
from orchestrator.job_states import TERMINAL

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.results import JobRow

LINE_SECONDS = 10.0


class ProgressView(Protocol):
    """Sees the jobs again and again."""

    def show(self, rows: "Sequence[JobRow]", *, remark: str = "") -> None:
        """Show how far the jobs are."""


@contextmanager
def spectator(engine: "Engine", *, title: str) -> Iterator[ProgressView]:
    """Open the view that fits standard output."""
    if not terminal.is_live():
        yield Lines()
        return
    with Canvas() as canvas:
        yield Picture(engine, canvas, title)


class Picture:
    """Draws the jobs over the last picture of them."""

    def __init__(self, engine: "Engine", canvas: Canvas, title: str) -> None:
        """Draw on this canvas."""
        self._curves, self._canvas, self._title = Curves(engine), canvas, title
        self._began = time.monotonic()
        self._last: Snapshot | None = None

    def show(self, rows: "Sequence[JobRow]", *, remark: str = "") -> None:
        """Draw; without rows the last ones stay, with the remark."""
        if rows or self._last is None:
            workers = [row.worker for row in rows if row.worker and row.state == "running"]
            self._last = Snapshot(rows, workers, self._curves.of(rows), remark)
        shown = self._last if rows else Snapshot(self._last.rows, self._last.workers, self._last.curves, remark)
        elapsed = duration(time.monotonic() - self._began)
        self._canvas.draw(picture(shown, size=self._canvas.size, title=self._title, clock=elapsed))


class Lines:
    """Prints a line for each job that ends, and one about all of them from time to time."""

    def __init__(self) -> None:
        """Begin now."""
        self._began = time.monotonic()
        self._next = self._began + LINE_SECONDS
        self._ended: set[int] | None = None

    def show(self, rows: "Sequence[JobRow]", *, remark: str = "") -> None:
        """Print what is new."""
        ended = [row for row in rows if row.state in TERMINAL]
        known = {row.id for row in ended} if self._ended is None else self._ended
        elapsed = duration(time.monotonic() - self._began)
        for row in (row for row in ended if row.id not in known):
            said = f"fvu {ratio(row.fvu)} after {count(row.tokens_seen)} tokens" if row.fvu is not None else ""
            name = f"job {row.id} (n {row.n_latents or 'auto'}, k {row.k}) {row.state}"
            terminal.echo(f"{elapsed:>6}  {name}: {said} {why(row)}".rstrip())
        self._ended = known | {row.id for row in ended}
        if time.monotonic() >= self._next:
            self._next += LINE_SECONDS
            counts = ", ".join(f"{number} {state}" for state, number in count_states(rows).items() if number)
            terminal.echo(f"{elapsed:>6}  {done_share(rows):.0%} done: {counts}" + (f" ({remark})" if remark else ""))
