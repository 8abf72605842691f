"""`orch logs`: what a job's trainer wrote."""

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.selection import database, job_argument, job_rows
from orchestrator.errors import NotFound
from orchestrator.job_states import TERMINAL

if TYPE_CHECKING:
    from sqlalchemy import Engine

FOLLOW_SECONDS = 0.3


@click.command()
@job_argument()
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended, over all its attempts.")
@click.option("--attempt", type=click.IntRange(1), help="Of that attempt; the last one by default.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
def logs(*, job: int, follow: bool, attempt: int | None, tail: int | None) -> None:
    """Print what a job's trainer wrote."""
    with database() as (settings, engine):
        folder = Path(settings.home, "logs", str(job))
        row = job_rows(engine, [str(job)])[0]
        number = attempt or _last(folder) or max(1, row.attempt)
        if not follow:
            _print(folder / f"{number}.log", job, tail)
            return
        for line in _follow(engine, job, folder / f"{number}.log", tail=tail):
            terminal.echo(line)


def _print(path: Path, job: int, tail: int | None) -> None:
    if not path.exists():
        there = sorted(int(found.stem) for found in path.parent.glob("*.log") if found.stem.isdigit())
        known = f"Attempts with a log: {', '.join(map(str, there))}" if there else f"orch explain {job} says why"
        raise NotFound(
            f"job {job} has no log of attempt {path.stem}" if there else f"job {job} has no log yet", hint=known
        )
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines if tail is None else deque(lines, maxlen=tail):
            terminal.echo(line.rstrip("\n"))


def _follow(engine: "Engine", job: int, path: Path, *, tail: int | None) -> Iterator[str]:
    """Yield lines as they are written, then those of the next attempt, until the job has ended."""
    place = 0
    if tail is not None and path.exists():
        with path.open("rb") as file:
            lines = file.readlines()
        place = sum(map(len, lines[: max(0, len(lines) - tail)]))
    while True:
        newer = path.with_name(f"{int(path.stem) + 1}.log")
        # Asked before the file is read: what was written until then is all there is.
        over, ended = newer.exists(), job_rows(engine, [str(job)])[0].state in TERMINAL
        text, place = _read(path, place)
        yield from text
        if over:
            path, place = newer, 0
            yield f"==> attempt {path.stem} <=="
        elif ended:
            return
        else:
            time.sleep(FOLLOW_SECONDS)


def _read(path: Path, place: int) -> tuple[list[str], int]:
    """Return the whole lines after a place in a file, and the place after them."""
    if not path.exists():
        return [], place
    with path.open("rb") as file:
        file.seek(place)
        whole, newline, _ = file.read().rpartition(b"\n")
    return whole.decode(errors="replace").split("\n") if newline else [], place + len(whole) + len(newline)


def _last(folder: Path) -> int | None:
    return max((int(found.stem) for found in folder.glob("*.log") if found.stem.isdigit()), default=None)
