"""`orch cancel, pause, resume, retry, extend, reprioritise`: what a person wants of jobs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.selection import database, output_option, selectors, tokens_given, yes_option
from orchestrator.errors import StateError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.queue import Change
    from orchestrator.results import SweepRow

LINES_SHOWN = 20


@click.command()
@selectors(required=True)
@yes_option()
@output_option("name", "json")
def cancel(*, selectors: tuple[str, ...], yes: bool, output: str | None) -> None:
    """Cancel jobs: waiting ones at once, running ones at their next heartbeat."""
    from orchestrator import queue

    with database() as (_, engine):
        print_changes(queue.cancel(engine, _chosen(engine, selectors, "Cancel", yes=yes)), output)


@click.command()
@selectors(required=True)
@click.option("--drain", is_flag=True, help="Of a sweep: let what runs finish, and start nothing more.")
@yes_option()
@output_option("name", "json")
def pause(*, selectors: tuple[str, ...], drain: bool, yes: bool, output: str | None) -> None:
    """Pause jobs; running ones write a checkpoint first. `orch resume` lets them go on, exactly where they were."""
    from orchestrator import queue

    with database() as (_, engine):
        if drain:
            for sweep in _sweeps(engine, selectors, strict=True):
                queue.pause_sweep(engine, sweep.id)
                terminal.note(f"sweep {sweep.name}: no further job starts. It goes on with: orch resume {sweep.name}")
        else:
            print_changes(queue.pause(engine, _chosen(engine, selectors, "Pause", yes=yes)), output)


@click.command()
@selectors(required=True)
@yes_option()
@output_option("name", "json")
def resume(*, selectors: tuple[str, ...], yes: bool, output: str | None) -> None:
    """Let paused jobs go on, from their last checkpoint."""
    from orchestrator import queue

    with database() as (_, engine):
        ids = _chosen(engine, selectors, "Resume", yes=yes)
        for sweep in _sweeps(engine, selectors, strict=False):
            if sweep.paused:
                queue.resume_sweep(engine, sweep.id)
                terminal.note(f"sweep {sweep.name}: its jobs may start again.")
        _wake(engine, queue.resume(engine, ids), output)


@click.command()
@selectors(required=True)
@yes_option()
@output_option("name", "json")
def retry(*, selectors: tuple[str, ...], yes: bool, output: str | None) -> None:
    """Queue failed or cancelled jobs again, from their last checkpoint."""
    from orchestrator import queue

    with database() as (_, engine):
        _wake(engine, queue.retry(engine, _chosen(engine, selectors, "Retry", yes=yes)), output)


@click.command()
@selectors(required=True)
@click.option("--max-tokens", required=True, metavar="TOKENS", callback=tokens_given,
              help="The new budget of each, such as 50M.")  # fmt: skip
@yes_option()
@output_option("name", "json")
def extend(*, selectors: tuple[str, ...], max_tokens: int, yes: bool, output: str | None) -> None:
    """Give jobs a larger budget: they go on from their last checkpoint, as the same jobs with the same curves.

    A job that has used its budget is queued again; one that is queued or paused goes on waiting. What auto came to,
    the learning rate and the window of dead latents, stays. Not for jobs that have converged or diverged, or whose
    learning rate has decayed: those are enqueued anew.
    """
    from orchestrator import queue

    with database() as (_, engine):
        ids = _chosen(engine, selectors, "Extend", yes=yes)
        _wake(engine, queue.extend(engine, ids, max_tokens=max_tokens), output)


@click.command()
@selectors(required=True)
@click.option("-p", "--priority", type=click.IntRange(-(2**31), 2**31 - 1), required=True,
              help="Higher ones run first; 0 is what jobs have.")  # fmt: skip
@yes_option()
@output_option("name", "json")
def reprioritise(*, selectors: tuple[str, ...], priority: int, yes: bool, output: str | None) -> None:
    """Let jobs run before others, or after them.

    What runs goes on, and has the new priority when it waits again.
    """
    from orchestrator import queue

    with database() as (_, engine):
        ids = _chosen(engine, selectors, "Reprioritise", yes=yes)
        print_changes(queue.reprioritise(engine, ids, priority=priority), output)


def _chosen(engine: "Engine", selectors: Sequence[str], verb: str, *, yes: bool) -> list[int]:
    from orchestrator import results

    ids = results.find(engine, selectors)
    if len(ids) > 1:
        terminal.confirm(f"{verb} {len(ids)} jobs?", yes=yes)
    return ids


def _sweeps(engine: "Engine", selectors: Sequence[str], *, strict: bool) -> "list[SweepRow]":
    from orchestrator import results

    known = {sweep.name: sweep for sweep in results.sweeps(engine)}
    wrong = [name for name in selectors if name not in known]
    if strict and wrong:
        results.find(engine, wrong)  # a name that is nothing at all says so itself
        raise StateError(f"--drain is for sweeps, and {wrong[0]} is a job", hint=f"orch pause {wrong[0]}")
    return [known[name] for name in selectors if name in known]


def _wake(engine: "Engine", changes: "list[Change]", output: str | None) -> None:
    from orchestrator.dispatch import wake
    from orchestrator.settings import load

    print_changes(changes, output)
    settings = load()
    if not wake(settings, [change.job_id for change in changes if change.state == "queued"]):
        terminal.warn("the broker does not answer.", f"Workers look by themselves every {settings.poll:g} s.")


def print_changes(changes: "list[Change]", output: str | None) -> None:
    """Print what a request did to each job."""
    if output == "json":
        terminal.echo_json(terminal.envelope("change", (change._asdict() for change in changes)))
        return
    describe: Callable[[Change], str] = (
        (lambda change: str(change.job_id))
        if output == "name"
        else lambda change: f"job {change.job_id}: {change.effect}"
    )
    shown = changes if output or len(changes) <= LINES_SHOWN else changes[:LINES_SHOWN]
    for change in shown:
        terminal.echo(describe(change))
    if len(shown) < len(changes):
        terminal.echo(f"… and {len(changes) - len(shown)} more")
