"""`orch status`: show jobs and how far they are, once or until Ctrl-C."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import job_columns, why
from orchestrator.cli.display.evaluation_tables import evaluation_columns
from orchestrator.cli.display.formats import clock, loss, plural
from orchestrator.cli.display.lens_tables import lens_columns
from orchestrator.cli.display.live_canvas import MIN_SECONDS, LiveCanvas
from orchestrator.cli.display.queue_view import DISPLAY_ORDER, Snapshot, Sparklines, first_shown, screen, state_counts
from orchestrator.cli.display.records import csv_text, job_records, plain, record
from orchestrator.cli.display.tables import table
from orchestrator.cli.job_filter import choice_of, columns_of, filter_options, keys_of
from orchestrator.cli.selection import database, output_option, selectors, states_option
from orchestrator.errors import StorageError
from orchestrator.formatting import count
from orchestrator.job_states import TERMINAL

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.evaluation.evaluation_rows import EvaluationRow
    from orchestrator.results import JobRow
    from orchestrator.results.choice import Choice
    from orchestrator.settings import Settings

Read = Callable[[], "list[JobRow]"]
Evaluated = Callable[[], "list[EvaluationRow]"]


@click.command()
@selectors(required=False)
@states_option()
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Show so many jobs: first what runs, last what is done.",
)
@click.option("--all", "everything", is_flag=True, help="Show every job.")
@filter_options
@click.option("-w", "--watch", type=click.FloatRange(min=0), is_flag=False, flag_value=1.0, metavar="[SEC]",
              help="Look again and again until Ctrl-C; to a program, print what changes.")  # fmt: skip
@output_option("wide", "json", "name", "csv")
def status(
    *, selectors: tuple[str, ...], states: tuple[str, ...] | None, limit: int, everything: bool,
    where: tuple[str, ...], labels: tuple[str, ...], best_by: str | None, sort: str, columns: str | None,
    watch: float | None, output: str | None,
) -> None:  # fmt: skip
    """Show jobs and how far they are; `orch ls` is the same, `orch ps` shows what runs.

    SWEPT is what sets the jobs shown apart besides N and K; -o csv and json have a column for each of its keys.
    PROGRESS is the share of the token budget. ETA is the time until its own curve will have met the job's stop rule,
    and the time to the end of the budget as long as the curve is too short to say. L0 is how many latents are active
    per token: compare FVU at one L0 alone. DEAD is – while no latent can be dead. T(1%) is the number of tokens to
    convergence. PASSES, with -o wide, is how often the budget reads the text. -o json prints everything there is; its
    `evaluations` are those of the names, states and limit given: none with --where, --label, --best-by or --sort,
    which choose among trainings alone.
    """
    if watch is not None and output in {"csv", "name"}:
        raise click.UsageError(
            f"-o {output} has no end to wait for with --watch; use -o json, which prints a line per change."
        )
    if watch is not None and columns:
        raise click.UsageError("--columns is for a list that is printed once: --watch has columns of its own.")
    from orchestrator import results

    choice, keys = choice_of(where, labels, best_by, sort), keys_of(columns)
    with database() as (settings, engine):

        def read() -> "list[JobRow]":
            rows = _read(engine, selectors, states, choice, limit=None if everything else limit)
            return results.located(settings, rows) if output in {"json", "csv"} else rows

        def evaluated() -> "list[EvaluationRow]":
            most = None if everything else limit
            return _read_evaluations(engine, selectors, states, limit=most) if choice.is_whole else []

        if watch is not None:
            _watch(engine, read, seconds=max(MIN_SECONDS, watch), output=output)
        elif output in {"json", "csv", "name"}:
            _print_records(engine, read(), output or "", keys, evaluated)
        else:
            rows = read()
            _print_table(engine, rows, keys, wide=output == "wide")
            is_beside = choice.is_whole and not rows and _train_nothing(engine, selectors)
            _print_queue(settings, engine, None if is_beside else len(rows))
            if choice.is_whole:
                _print_evaluations(engine, evaluated if selectors else None)
                _print_lenses(engine, selectors, states)


def _read(
    engine: "Engine", selectors: tuple[str, ...], states: tuple[str, ...] | None, choice: "Choice | None" = None, *,
    limit: int | None,
) -> "list[JobRow]":  # fmt: skip
    from orchestrator import results
    from orchestrator.results.choice import choose

    ids = results.find(engine, selectors) if selectors else None
    if choice is not None and not choice.is_whole:
        return choose(engine, choice, ids=ids, states=states, limit=limit)
    counts = results.counts(engine)
    if limit is None or sum(counts.values()) <= limit:
        return results.jobs(engine, ids=ids, states=states)
    rows: list[JobRow] = []
    for state in DISPLAY_ORDER:  # among many, what runs or failed before what waits, and that before what is done
        is_empty = ids is None and not counts[state]  # jobs that are named may be hidden ones, which are not counted
        if len(rows) < limit and not is_empty and (states is None or state in states):
            rows += results.jobs(engine, ids=ids, states=[state], limit=limit - len(rows))
    return sorted(rows, key=lambda row: row.id)


def _train_nothing(engine: "Engine", selectors: tuple[str, ...]) -> bool:
    """Say whether there are jobs of these names, and none of them trains an SAE."""
    from orchestrator import results

    ids = results.find(engine, selectors) if selectors else []
    return bool(ids) and not results.jobs(engine, ids=ids, limit=1)


def _print_table(engine: "Engine", rows: "list[JobRow]", keys: Sequence[str], *, wide: bool) -> None:
    columns = columns_of(engine, rows, keys) if keys else job_columns(rows, drawn=terminal.is_live(), wide=wide)
    if rows:
        for line in table(rows, columns, width=None if wide else terminal.width()):
            terminal.echo(line)
        terminal.echo()


def _print_queue(settings: "Settings", engine: "Engine", shown: int | None) -> None:
    """Print what the queue holds and who works on it; `shown`: jobs that train SAEs, None where none was asked for."""
    from orchestrator import results

    counts = results.counts(engine)
    total = sum(counts.values())
    if not total and not any(sum(results.counts(engine, kind=kind).values()) for kind in ("evaluate", "lens")):
        terminal.note("The queue is empty. Put something in with: orch enqueue FILE, or try: orch demo")
        return
    told = "" if shown is None else f"{'  '.join(state_counts(counts))}  ·  "
    if shown is not None and shown != total:
        told = f"{shown} of {plural(total, 'job')} shown · {told}"
    at_work = plural(len({worker.worker for worker in results.workers(engine)}), "worker")
    woken = "woken by the broker" if settings.broker_url else "polling"
    terminal.note(f"{told}{at_work} at work, {woken}")
    unwell = [worker for worker in results.registered_workers(engine) if worker.state == "unwell"]
    for worker in unwell:
        terminal.warn(f"worker {worker.name} on {worker.host} is unwell and claims nothing: {worker.unwell}")
    if results.paused_since(engine) is not None:
        terminal.note("The queue is paused: nothing more starts. To open it: orch queue resume")


def _read_evaluations(
    engine: "Engine", selectors: tuple[str, ...], states: tuple[str, ...] | None, *, limit: int | None
) -> "list[EvaluationRow]":
    from orchestrator import results
    from orchestrator.evaluation.evaluation_rows import evaluations

    ids = results.find(engine, selectors) if selectors else None
    return evaluations(engine, ids=ids, states=states, limit=limit)


def _print_evaluations(engine: "Engine", evaluated: Evaluated | None) -> None:
    """Print how many evaluations there are, and a table of those that are read with `evaluated`."""
    from orchestrator import results

    counts = results.counts(engine, kind="evaluate")
    if not any(counts.values()):
        return
    if rows := evaluated() if evaluated else []:
        terminal.echo()
        for line in table(rows, evaluation_columns(rows, drawn=terminal.is_live()), width=terminal.width()):
            terminal.echo(line)
    terminal.note(f"evaluations: {'  '.join(state_counts(counts))}  ·  their scores: orch results")


def _print_lenses(engine: "Engine", selectors: tuple[str, ...], states: tuple[str, ...] | None) -> None:
    """Print how many jobs train lenses; of sweeps and jobs that are named, also which."""
    from orchestrator import results

    counts = results.counts(engine, kind="lens")
    if not any(counts.values()):
        return
    from orchestrator import lenses
    from orchestrator.lenses.lens_progress import so_far

    found = lenses.of_jobs(engine, results.find(engine, selectors)) if selectors else []
    rows = so_far(engine, [row for row in found if states is None or row.state in states])
    if rows:
        terminal.echo()
        for line in table(rows, lens_columns(), width=terminal.width()):
            terminal.echo(line)
    terminal.note(f"lenses: {'  '.join(state_counts(counts))}  ·  orch lens list")


def _print_records(
    engine: "Engine", rows: "list[JobRow]", output: str, keys: Sequence[str], evaluated: Evaluated
) -> None:
    from orchestrator.results.choice import values

    if output == "name":
        for row in rows:
            terminal.echo(str(row.id))
        return
    if keys:
        found = values(engine, rows, keys)
        records = [plain(found[row.id]) for row in rows]
    else:
        records = job_records(rows)
    if output == "csv":
        terminal.echo(csv_text(records))
    else:
        beside = [plain(row.flat()) for row in evaluated()]
        terminal.echo_json(terminal.envelope("status", records) | {"evaluations": beside})


def _watch(engine: "Engine", read: Read, *, seconds: float, output: str | None) -> None:
    if output == "json":
        for changed in _changes(read, seconds):
            terminal.echo_json(terminal.envelope("status", map(record, changed)), lines=True)
    elif not terminal.is_live():
        for changed in _changes(read, seconds):
            for row in changed:
                terminal.echo(change_line(row))
    else:
        _draw(engine, read, seconds)


def _draw(engine: "Engine", read: Read, seconds: float) -> None:
    from orchestrator import results

    sparklines, last = Sparklines(engine), Snapshot(())
    with LiveCanvas() as canvas:
        while True:
            try:
                rows = read()
                names = [str(worker.worker) for worker in results.workers(engine)]
                evaluations = results.counts(engine, kind="evaluate")
                last = Snapshot(rows, names, sparklines.of(first_shown(rows, 60)), evaluations=evaluations)
            except StorageError as error:
                if not last.rows:
                    raise
                last = replace(last, notice=f"{error.message} · looking again")
            title = last.rows[0].sweep if len({row.sweep for row in last.rows}) == 1 else "orch"
            canvas.draw(screen(last, size=canvas.size, title=title, clock=clock(time.time())))
            time.sleep(seconds)


def _changes(read: Read, seconds: float) -> "Iterator[Sequence[JobRow]]":
    seen: dict[int, tuple[Any, ...]] = {}
    while True:
        marks = {row.id: (_mark(row), row) for row in read()}
        changed = [row for job_id, (mark, row) in marks.items() if seen.get(job_id) != mark]
        if changed:
            yield changed
        seen |= {job_id: mark for job_id, (mark, _) in marks.items()}
        time.sleep(seconds)


def _mark(row: "JobRow") -> tuple[Any, ...]:
    return row.state, row.desired, row.attempt, row.fvu, None if row.state == "running" else row.outcome


def change_line(row: "JobRow") -> str:
    """Return one job on one line, for those who read a log."""
    said = [f"{clock(time.time())}  job {row.id} {row.state}", f"n={row.n_latents or 'auto'} k={row.k}"]
    if row.fvu is not None:
        said.append(f"{count(row.tokens_seen)} of {count(row.max_tokens)} tokens  {loss(row.fvu, row.l0)}")
    if row.state in TERMINAL and why(row):
        said.append(why(row))
    return "  ".join(said)
