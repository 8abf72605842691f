"""`orch enqueue`: put the jobs of a sweep file into the queue."""

from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.selection import database, database_if_there, output_option
from orchestrator.formatting import jobs_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine

    from orchestrator.cli.display.sweep_table import SweepPlan
    from orchestrator.settings import Settings
    from orchestrator.sweep.sweep import Sweep


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-n", "--name", help="Name of the sweep, instead of the file's.")
@click.option("-p", "--priority", type=click.IntRange(-(2**31), 2**31 - 1),
              help="Higher ones run first; by default the file's, or 0.")  # fmt: skip
@click.option("--needed/--allow-duplicate", default=True,
              help="Add what the sweep does not hold yet (the default), or all of it once more.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show what would be added, and what it costs; write nothing.")
@click.option("--wait", "and_wait", is_flag=True, help="Then wait for the jobs, as `orch wait` does.")
@output_option("name", "json")
@click.pass_context
def enqueue(
    ctx: click.Context, *, file: Path, overrides: tuple[str, ...], name: str | None, priority: int | None, needed: bool,
    dry_run: bool, and_wait: bool, output: str | None,
) -> None:  # fmt: skip
    """Put the jobs of a sweep file into the queue; FILE may be - for standard input.

    KEY=VALUE overrides the file: sae.k=16,32 varies a key, 'optimizer.lr=log(1e-4,1e-3,3)' takes a range, ~KEY takes a
    key out. What the sweep of that name holds already is skipped, so enqueueing twice adds nothing.
    """
    from orchestrator.enqueueing import doubts, jobs_of, read_sweep, with_lenses
    from orchestrator.settings import load
    from orchestrator.sweep import check_name

    sweep = read_sweep(file, overrides, settings=load(), name=name and check_name(name, "--name"))
    for doubt in doubts(sweep, file, settings=load()):
        terminal.warn(doubt)
    if dry_run:
        jobs = _preview(sweep, needed=needed)
        _print(sweep, jobs, output, evaluations=None)
        return
    with database() as (settings, engine):
        sweep = with_lenses(engine, sweep)
        jobs, evaluations = _add(engine, sweep, priority=priority, needed=needed)
        _print(sweep, jobs, output, evaluations=evaluations)
        _wake(settings, jobs, evaluations)
        if and_wait:
            ctx.exit(_wait(engine, sweep, jobs_of(engine, sweep, jobs.job_ids)))
    if not output and jobs.added:
        terminal.note("\nNext:  orch worker         trains them\n       orch status -w      shows how far they are")


def _preview(sweep: "Sweep", *, needed: bool) -> "SweepPlan":
    from orchestrator import results
    from orchestrator.cli.display.sweep_table import SweepPlan
    from orchestrator.enqueueing import with_lenses
    from orchestrator.estimates.flops import hook_width

    there: set[str] = set()
    times: list[tuple[float, results.MeasuredSpeed] | None] = [None] * len(sweep.configs)
    with database_if_there() as engine:
        sweep = with_lenses(engine, sweep)
        texts = results.text_sizes(engine, sweep.configs)
        if engine is not None:
            there = results.existing(engine, sweep.name) if needed else there
            widths = [hook_width(config.subject) for config in sweep.configs]
            times = results.expected_seconds(engine, sweep.configs, host=gethostname(), d_models=widths)
    new = [config.config_id not in there for config in sweep.configs]
    return SweepPlan(sweep.configs, [None] * len(new), new, texts, times)


def _add(engine: "Engine", sweep: "Sweep", *, priority: int | None, needed: bool) -> "tuple[SweepPlan, Sequence[int]]":
    """Queue what is new; return the jobs, and the new evaluations of SAEs that the sweep has trained already."""
    from orchestrator import queue, results
    from orchestrator.cli.display.sweep_table import SweepPlan

    added = queue.enqueue(engine, sweep, allow_duplicate=not needed, priority=priority)
    new = [job_id is not None for job_id in added.job_ids]
    texts = results.text_sizes(engine, sweep.configs)
    return SweepPlan(sweep.configs, added.job_ids, new, texts), added.evaluations


def _wait(engine: "Engine", sweep: "Sweep", ids: "Sequence[int]") -> int:
    """Wait for jobs, then for the evaluations of their SAEs; return the exit code."""
    from orchestrator import results
    from orchestrator.cli.commands.wait import wait_for

    code = wait_for(engine, ids)
    if sweep.evaluation is None:
        return code
    return wait_for(engine, [row.id for row in results.jobs(engine, sweep=sweep.name, kind="evaluate")]) or code


def _print(sweep: "Sweep", jobs: "SweepPlan", output: str | None, *, evaluations: "Sequence[int] | None") -> None:
    """Print the jobs; `evaluations`: those that are new, None in a dry run."""
    from orchestrator.cli.display.sweep_table import budget_notes, job_record, sweep_lines, time_line, total_line

    new, dry_run = jobs.added, evaluations is None
    if output == "json":
        items = terminal.envelope("enqueue", map(job_record, jobs))
        counts = {"sweep": sweep.name, "added": 0 if dry_run else new, "skipped": len(jobs) - new}
        plan = sweep.evaluation and sweep.evaluation.model_dump(mode="json")
        terminal.echo_json(items | counts | {"evaluate": plan, "evaluations": list(evaluations or ())})
    elif output == "name":
        for job in jobs.fresh():
            terminal.echo(job.config.config_id if dry_run else str(job.job_id))
    else:
        for line in sweep_lines(jobs, width=terminal.width()):
            terminal.echo(line)
        added = "would add" if dry_run else "added"
        cost = f" · {total_line(jobs)}" if new else ""
        terminal.echo(f"\n{sweep.name}: {added} {new}, already there {len(jobs) - new}{cost}")
        if dry_run and new:
            terminal.echo(time_line(jobs))
        if sweep.evaluation is not None:
            there = f"; of SAEs trained already: {jobs_named(evaluations, most=4)}" if evaluations else ""
            terminal.echo(f"evaluates each SAE once it is trained: {', '.join(sweep.evaluation.metrics)}{there}")
    for note in budget_notes(jobs):
        terminal.warn(note.text, note.hint)


def _wake(settings: "Settings", jobs: "SweepPlan", evaluations: "Sequence[int]") -> None:
    from orchestrator.dispatch import NOT_WOKEN, wake

    if not wake(settings, [*(job_id for job_id in jobs.job_ids if job_id is not None), *evaluations]):
        seconds = f"{settings.poll:g}"
        terminal.warn(
            NOT_WOKEN,
            f"The jobs are queued all the same: workers look every {seconds} s. To see what is wrong: orch doctor",
        )
