"""`orch logs`: what a job's trainer wrote."""

import re
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
from orchestrator.units import is_number

if TYPE_CHECKING:
    from sqlalchemy import Engine

FOLLOW_SECONDS = 0.3
_HEAD = re.compile(r"\d\d:\d\d:\d\d (?:job (\d+): )?")
"""How a line of a trainer's log begins: the time, and which of its jobs it is about."""


@click.command()
@job_argument()
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended, over all its attempts.")
@click.option("--attempt", type=click.IntRange(1), help="Of that attempt; the last one by default.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines.")
@click.option("--all", "everything", is_flag=True, help="Also what the process wrote of other jobs that shared it.")
def logs(*, job: int, follow: bool, attempt: int | None, tail: int | None, everything: bool) -> None:
    """Print what a job's process wrote: of this job, and of all that shared the process alike."""
    about = None if everything else job
    with database() as (settings, engine):
        row = job_rows(engine, [str(job)])[0]
        newest = max(_attempts(settings.log_file(job, 1).parent), default=None)
        file = settings.log_file(job, attempt or newest or max(1, row.attempt))
        if not follow:
            _print(file, job, tail, _OfJob(about))
            return
        for line in _follow(engine, job, file, about=about, tail=tail):
            terminal.echo(line)


class _OfJob:
    """Says of line after line of a trainer's log whether it is about a job, or about none in particular.

    A line of several, as a traceback, belongs to the line with a time before it.
    """

    def __init__(self, job: int | None) -> None:
        """Take the job; None: every line is wanted."""
        self._job, self._is_mine = job, True

    def __call__(self, line: str) -> bool:
        """Say whether the next line is wanted."""
        found = _HEAD.match(line)
        if found:
            self._is_mine = found[1] is None or int(found[1]) == self._job
        return self._job is None or self._is_mine


def _print(path: Path, job: int, tail: int | None, mine: "_OfJob") -> None:
    if not path.exists():
        there = sorted(_attempts(path.parent))
        known = f"Attempts with a log: {', '.join(map(str, there))}" if there else f"orch explain {job} says why"
        raise NotFound(
            f"job {job} has no log of attempt {path.stem}" if there else f"job {job} has no log yet", hint=known
        )
    with path.open(encoding="utf-8", errors="replace") as lines:
        own = filter(mine, lines)
        for line in own if tail is None else deque(own, maxlen=tail):
            terminal.echo(line.rstrip("\n"))


def _follow(engine: "Engine", job: int, path: Path, *, about: int | None, tail: int | None) -> Iterator[str]:
    """Yield lines as they are written, then those of the next attempt, until the job has ended.

    Only those about one job, where `about` is it; of those that are there at first, the last `tail`.
    """
    position, mine = 0, _OfJob(about)
    while True:
        newer = path.with_name(f"{int(path.stem) + 1}.log")
        # Asked before the file is read: what was written until then is all there is.
        over, ended = newer.exists(), job_rows(engine, [str(job)])[0].state in TERMINAL
        text, position = _read(path, position)
        own = filter(mine, text)
        yield from own if tail is None else deque(own, maxlen=tail)
        tail = None
        if over:
            path, position, mine = newer, 0, _OfJob(about)
            yield f"==> attempt {path.stem} <=="
        elif ended:
            return
        else:
            time.sleep(FOLLOW_SECONDS)


def _read(path: Path, position: int) -> tuple[list[str], int]:
    """Return the complete lines after a position in a file, and the position after them."""
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        whole, newline, _ = file.read().rpartition(b"\n")
    lines = whole.decode(errors="replace").split("\n") if newline else []
    return lines, position + len(whole) + len(newline)


def _attempts(folder: Path) -> list[int]:
    """Return the attempts that have a log in a folder."""
    return [int(file.stem) for file in folder.glob("*.log") if is_number(file.stem)]
