"""Progress of a long piece of preparation: a bar for a person, a line now and then for a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SPEAK_SECONDS = 5.0


@contextmanager
def ticker(
    label: str, total: int | None, heard: Callable[[int], None] | None = None
) -> Iterator[Callable[[int], None]]:
    """Give a function that takes the tokens done so far, shows them on stderr and hands them on to `heard`."""
    with _bar(label, total) if sys.stderr.isatty() else _lines(label) as show:

        def tick(done: int) -> None:
            show(done)
            if heard is not None:
                heard(done)

        yield tick


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
    spoken = time.monotonic()

    def show(done: int) -> None:
        nonlocal spoken
        if time.monotonic() - spoken > SPEAK_SECONDS:
            spoken = time.monotonic()
            print(f"{label}: {done:,} tokens" if done else label, file=sys.stderr, flush=True)

    yield show
