"""`orch wait`: until jobs have ended; the exit code says how."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import COLOURS, why
from orchestrator.cli.display.formats import loss
from orchestrator.cli.selection import database, selectors, time_span

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.results import JobRow

_NOBODY = {
    "NoWorker": "No worker runs: nothing happens until one is started with: orch worker",
    "WorkersLeaving": "Every worker drains or stops: nothing more starts until another is started with: orch worker",
    "QueuePaused": "The queue is paused: nothing starts until: orch queue resume",
}


@click.command()
@selectors(required=True)
@click.option(
    "--timeout", metavar="TIME", callback=time_span, help="Give up after that long (exit code 6); for example 90s, 10m."
)
@click.option("--any", "first", is_flag=True, help="Wait for the first of them only.")
@click.pass_context
def wait(ctx: click.Context, *, selectors: tuple[str, ...], timeout: float | None, first: bool) -> None:
    """Wait until jobs have ended; the exit code says how.

    0: all succeeded (diverged is a result too); 7: one failed; 8: one was cancelled; 6: the time-out came first.
    """
    from orchestrator import results

    with database() as (_, engine):
        ids = results.find(engine, selectors)
        ctx.exit(wait_for(engine, ids, timeout=timeout, first=first))


def wait_for(engine: "Engine", ids: Sequence[int], *, timeout: float | None = None, first: bool = False) -> int:
    """Wait for jobs, print each as it ends, and return the exit code.

    Raises:
        WaitTimedOut: some had not ended in time.
    """
    from orchestrator.waiting import as_they_end, fault_of

    _say_if_nobody_works(engine, ids)
    ended: list[JobRow] = []
    for row in as_they_end(engine, ids, timeout=timeout):
        ended.append(row)
        terminal.echo(_line(row))
        if first:
            break
    fault = fault_of(ended)
    return fault.exit_code if fault else 0


def _say_if_nobody_works(engine: "Engine", ids: Sequence[int]) -> None:
    """Say that no worker runs, where jobs wait for one."""
    from orchestrator import results

    waiting = results.jobs(engine, ids=ids, states=["queued"], limit=1, kind=None)
    if waiting and waiting[0].reason in _NOBODY:
        terminal.note(_NOBODY[waiting[0].reason])


def _line(row: "JobRow") -> str:
    said = f"  {loss(row.fvu, row.l0)}" if row.fvu is not None else ""
    more = f"  {why(row)}" if why(row) else ""
    return f"job {row.id} {terminal.style(row.state, fg=COLOURS[row.state])}{said}{more}"
