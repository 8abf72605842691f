"""Report the progress of a long preparation: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 5.0


@contextmanager
def report_progress(
    label: str, total: int | None, on_progress: Callable[[int], None] | None = None
) -> Iterator[Callable[[int], None]]:
    """Give a function that takes the tokens done so far, shows them on stderr and passes them to `on_progress`."""
    with _bar(label, total) if sys.stderr.isatty() else _lines(label) as show:

        def report(done: int) -> None:
            show(done)
            if on_progress is not None:
                on_progress(done)

        yield report


@contextmanager
def _bar(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,} tokens"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def _lines(label: str) -> Iterator[Callable[[int], None]]:
    printed_at = time.monotonic()

    def show(done: int) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at > LINE_SECONDS:
            printed_at = time.monotonic()
            print(f"{label}: {done:,} tokens" if done else label, file=sys.stderr, flush=True)

    yield show
