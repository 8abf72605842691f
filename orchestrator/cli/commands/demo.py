"""`orch demo`: the quickstart sweep from file to results, with workers of its own, while one watches."""

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.commands.report_commands import gather, law_lines, report_path, write
from orchestrator.cli.display.demo_view import ProgressView, progress_view
from orchestrator.cli.display.formats import plural
from orchestrator.cli.display.results_table import result_lines, where_lines
from orchestrator.cli.selection import database
from orchestrator.cores import usable_cores
from orchestrator.errors import OrchError, StateError, StorageError, TrainingError
from orchestrator.job_states import TERMINAL
from orchestrator.processes.demo_workers import DemoWorkers
from orchestrator.processes.python_process import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from orchestrator.results import JobRow
    from orchestrator.settings import Settings

QUICKSTART = EXAMPLES / "quickstart.yaml"
MOST_WORKERS = 2
LOOK_SECONDS = 0.5
FLUSH_SECONDS = 90.0
"""For how long workers may bring MLflow up to date after the last job."""
STOP_MARGIN = 15.0
STOPPING = "\nStopping: the workers write their checkpoints. (Ctrl-C again: do not wait for them.)"


@click.command()
@click.option("--sweep", "file", type=click.Path(path_type=Path), default=QUICKSTART, help="Another sweep file.")
@click.option("--workers", type=click.IntRange(1), help=f"Worker processes; by default {MOST_WORKERS}, or fewer cores.")
def demo(*, file: Path, workers: int | None) -> None:
    """Train the quickstart sweep and watch it.

    Queues SAEs of a small language model that ships with orch, starts workers, shows how they get on, and prints
    what came out and where it lies. Ctrl-C loses nothing: run it again, and it goes on from the last checkpoints.
    """
    from orchestrator import results

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with database() as (settings, engine):
        name = _enqueue(engine, file)
        left = _unfinished(engine, name)
        if left and results.paused_since(engine) is not None:
            raise StateError("the queue is paused: no worker would claim anything", hint="orch queue resume")
        if left:
            workers = workers or min(MOST_WORKERS, usable_cores(), len(left))
            # Each takes its part of the jobs, so that none takes all while another is idle.
            jobs = min(settings.jobs_per_trainer, -(-len(left) // workers))
            _train(settings, engine, name, workers=workers, jobs=jobs)
        else:
            terminal.note(f"{name}: every job has ended already; nothing is left to train.\n")
        _conclude(settings, engine, name)


def _enqueue(engine: "Engine", file: Path) -> str:
    from orchestrator import queue
    from orchestrator.sweep import expand

    sweep = expand(file)
    found = queue.enqueue(engine, sweep)
    terminal.note(
        f"{file.name}: {plural(len(sweep.configs), 'job')}, {found.added} new, {found.skipped} there already."
    )
    return sweep.name


def latest(engine: "Engine", name: str) -> "list[JobRow]":
    """Return the newest job of each config: what failed or was cancelled may have been enqueued again."""
    from orchestrator import results

    rows = {row.config_id: row for row in sorted(results.jobs(engine, sweep=name), key=lambda row: row.id)}
    return sorted(rows.values(), key=lambda row: row.id)


def _unfinished(engine: "Engine", name: str) -> "list[JobRow]":
    rows = [*latest(engine, name), *_evaluations(engine, name)]
    return [row for row in rows if row.state not in (*TERMINAL, "paused")]


def _evaluations(engine: "Engine", name: str) -> "list[JobRow]":
    from orchestrator import results

    return results.jobs(engine, sweep=name, kind="evaluate")


def _train(settings: "Settings", engine: "Engine", name: str, *, workers: int, jobs: int) -> None:
    threads = max(1, usable_cores() // workers)
    started = f"{plural(workers, 'worker')} with {plural(threads, 'thread')} each"
    terminal.note(f"Starting {started}; their logs are in {settings.logs_folder}\n")
    grace = settings.terminate_seconds + STOP_MARGIN
    group = DemoWorkers(settings.logs_folder, size=workers, threads=threads, jobs=jobs, grace_seconds=grace)
    try:
        with group:
            try:
                with progress_view(engine, title=name) as view:
                    _watch(engine, name, group, view)
                group.wait(FLUSH_SECONDS)
            except KeyboardInterrupt:
                if group.are_running:
                    terminal.note(STOPPING)
                raise
    except KeyboardInterrupt:
        terminal.note("Stopped; what was trained is in the checkpoints. To go on: orch demo (or: orch worker)")
        raise


def _watch(engine: "Engine", name: str, group: DemoWorkers, view: ProgressView) -> None:
    while True:
        are_running = group.are_running  # asked first: what they did before they ended is then in the database
        try:
            rows, measured = latest(engine, name), _evaluations(engine, name)
        except StorageError as error:
            view.show([], notice=f"{error.message} · looking again")
            rows = measured = []
        else:
            view.show(rows, notice=_failure(group) or _progress(rows, measured))
            if all(row.state in (*TERMINAL, "paused") for row in [*rows, *measured]):
                return
        if not are_running:
            left = sum(row.state not in TERMINAL for row in [*rows, *measured])
            raise TrainingError(f"the workers ended and left {plural(left, 'job')} undone", hint=group.log_tails())
        time.sleep(LOOK_SECONDS)


def _progress(rows: "Sequence[JobRow]", measured: "Sequence[JobRow]") -> str:
    if not any(row.tokens_seen for row in rows):
        return "no step yet: torch and the model are loaded, the text is read"
    done = sum(row.state in TERMINAL for row in measured)
    return f"{done} of {plural(len(measured), 'SAE')} evaluated" if done < len(measured) else ""


def _failure(group: DemoWorkers) -> str:
    failed = group.failed()
    return f"{failed[0].name} ended badly, see {failed[0].log}" if failed else ""


def _conclude(settings: "Settings", engine: "Engine", name: str) -> None:
    from orchestrator.evaluation.job_scores import sweep_scores

    rows = latest(engine, name)
    scores = {
        job_id: found["delta_ce"]
        for job_id, found in sweep_scores(engine, [name]).by_job.items()
        if "delta_ce" in found
    }
    for line in result_lines(rows, width=terminal.width(), delta_ce=scores):
        terminal.echo(line)
    terminal.echo()
    contents = gather(settings, engine, [name])
    report = report_path(settings, [name])
    write(contents, report)
    for line in (*law_lines(contents), "", *where_lines(settings, engine, name, report=report)):
        terminal.echo(line)
    for row in rows:
        if row.state == "paused":
            terminal.warn(f"job {row.id} is paused.", f"It goes on with: orch resume {row.id}")
    failed = [row for row in [*rows, *_evaluations(engine, name)] if row.state == "failed"]
    if failed:
        first = failed[0]
        said = f"{plural(len(failed), 'job')} failed; job {first.id}: {first.reason}"
        raise OrchError(said, hint=f"orch explain {first.id}")
