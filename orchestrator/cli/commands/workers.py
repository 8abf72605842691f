"""`orch worker`: train; `orch worker list, drain, stop`: see who does, and ask them to leave."""

import os
import sys
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import worker_columns
from orchestrator.cli.display.formats import plural
from orchestrator.cli.display.records import record
from orchestrator.cli.display.tables import table
from orchestrator.cli.selection import database, output_option
from orchestrator.errors import NotFound, StateError
from orchestrator.processes.python_process import python_command, python_environment

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.queue.workers import Desired
    from orchestrator.results import RegisteredWorker


@click.group(invoke_without_command=True)
@click.option("--until-empty", is_flag=True, help="End when no job is queued or running.")
@click.option("--name", help="Its name in `orch status`; host and process id by default.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="CPU threads of the trainer; its part of the cores by default.",
)
@click.option("--device", help="auto, cpu, cuda or cuda:N; the setting `device` by default.")
@click.option("--jobs", type=click.IntRange(1), help="Most jobs of one stream that a trainer trains together.")
@click.option("--devices", help="A worker per entry: 0,1 or all GPUs: all; 0+1 is one whose jobs share both.")
@click.pass_context
def worker(
    ctx: click.Context,
    *,
    until_empty: bool,
    name: str | None,
    threads: int | None,
    device: str | None,
    jobs: int | None,
    devices: str | None,
) -> None:
    """Train and evaluate queued jobs until stopped.

    Ctrl-C or SIGTERM lets the running job write a checkpoint; the next worker goes on from there, exactly.
    """
    from orchestrator.settings import load

    flags = ["--until-empty"] if until_empty else []
    values = {"--name": name, "--threads": threads, "--jobs": jobs, "--device": device, "--devices": devices}
    for flag, value in values.items():
        flags += [flag, str(value)] if value is not None else []
    if ctx.invoked_subcommand is not None:
        if flags:
            raise click.UsageError(f"{flags[0]} is for a worker that trains, not for {ctx.invoked_subcommand}.")
        return
    if device is not None and devices is not None:
        raise click.UsageError("--device and --devices both name a place: give one of them.")
    load()  # a wrong setting is told here, before half a second of imports
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, python_command("worker", *flags), python_environment())


@worker.command("list")
@click.option("--ended", is_flag=True, help="Those too that have ended.")
@output_option("name", "json")
def show_workers(*, ended: bool, output: str | None) -> None:
    """Show the workers: where they are, what they run, when they were last heard of.

    A worker that was killed, or cannot reach the database, is lost after some missed reports; its jobs go on elsewhere
    when their leases have run out.
    """
    from orchestrator import results

    with database() as (_, engine):
        rows = results.registered_workers(engine, ended=ended)
    if output == "json":
        terminal.echo_json(terminal.envelope("worker", map(record, rows)))
    elif output == "name":
        for row in rows:
            terminal.echo(row.name)
    elif rows:
        for line in table(rows, worker_columns(any_unwell=any(row.unwell for row in rows)), width=terminal.width()):
            terminal.echo(line)
    else:
        terminal.note("There is no worker. Start one with: orch worker")


@worker.command()
def check() -> None:
    """Say whether the workers of this host are well, for a health check: exit code 5 where one is not, or none runs.

    One that hangs reports no more; one that is unwell says that its machine cannot do its work.
    """
    from socket import gethostname

    import psutil

    from orchestrator import results
    from orchestrator.errors import MachineError

    with database() as (_, engine):
        rows = results.registered_workers(engine)
    own = sorted((row for row in rows if row.host == gethostname()), key=lambda row: row.started_at)
    last = {row.pid: row for row in own}  # a process id comes again after a restart of a container
    running = [row for pid, row in last.items() if psutil.pid_exists(pid)]
    if not running:
        raise MachineError("no worker runs on this host", hint="Start one with: orch worker")
    for row in running:
        if row.state == "lost":
            raise MachineError(
                f"worker {row.name} hangs: not heard of for {row.silent:,.0f} s, and process {row.pid} is there"
            )
        if row.unwell:
            raise MachineError(f"worker {row.name} is unwell, and claims nothing: {row.unwell}")
    terminal.echo(
        f"{plural(len(running), 'worker')} of this host reported within {max(row.silent for row in running):.0f} s"
    )


_every = click.option("--all", "everybody", is_flag=True, help="Every worker there is.")
_names = click.argument("names", metavar="NAME...", nargs=-1)


@worker.command()
@_names
@_every
@output_option("name", "json")
def drain(*, names: tuple[str, ...], everybody: bool, output: str | None) -> None:
    """Let workers finish what they run, claim no more, and end.

    NAME may hold * and ?, as in 'node7-*'. A worker hears of it at its next report, within seconds.
    """
    _ask("drain", names, everybody=everybody, output=output)


@worker.command()
@_names
@_every
@output_option("name", "json")
def stop(*, names: tuple[str, ...], everybody: bool, output: str | None) -> None:
    """Let workers write checkpoints, hand their jobs back, and end: the same as SIGTERM.

    NAME may hold * and ?, as in 'node7-*'. A worker hears of it at its next report, within seconds.
    """
    _ask("stop", names, everybody=everybody, output=output)


def _ask(desired: "Desired", names: tuple[str, ...], *, everybody: bool, output: str | None) -> None:
    if bool(names) == everybody:
        raise click.UsageError("Name workers, or say --all.")
    from orchestrator.queue import workers

    with database() as (_, engine):
        chosen = _chosen(engine, names)
        workers.ask(engine, [row.token for row in chosen], desired)
    effects = [(row, _effect(row, desired)) for row in chosen]
    if output == "json":
        items = ({"name": row.name, "host": row.host, "pid": row.pid, "effect": effect} for row, effect in effects)
        terminal.echo_json(terminal.envelope("worker", items))
        return
    for row, effect in effects:
        terminal.echo(row.name if output else f"{row.name}: {effect}")
    if not effects:
        terminal.note("There is no worker.")


def _effect(row: "RegisteredWorker", desired: "Desired") -> str:
    if row.state == "lost":
        return "is lost; it would hear of it if it came back"
    if row.state == "stopping":
        return "was asked to stop before"
    runs = f", {plural(len(row.jobs), 'job')} running" if row.jobs else ""
    return f"asked to {desired}{runs}"


def _chosen(engine: "Engine", names: tuple[str, ...]) -> "list[RegisteredWorker]":
    """Return the workers of these names, all of them without names."""
    from fnmatch import fnmatchcase

    from orchestrator import results

    rows = results.registered_workers(engine, ended=True)
    living = [row for row in rows if row.state != "ended"]
    for name in names:
        if not any(fnmatchcase(row.name, name) for row in living):
            raise _nobody(name, {row.name for row in living}, {row.name for row in rows})
    return [row for row in living if not names or any(fnmatchcase(row.name, name) for name in names)]


def _nobody(name: str, living: set[str], known: set[str]) -> NotFound | StateError:
    from difflib import get_close_matches

    if name in known:
        return StateError(f"worker {name} has ended already", hint="orch worker list shows those that have not")
    near = get_close_matches(name, living, n=3)
    guess = f"; did you mean {', '.join(repr(other) for other in near)}?" if near else ""
    there = f"Workers: {', '.join(sorted(living))}" if living else "There is no worker. Start one with: orch worker"
    return NotFound(f"there is no worker {name!r}{guess}", hint=there)
