"""`orch plan --lr`: what is known of the learning rate of each size, what to try next, and doing so to the end."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.cli import terminal
from orchestrator.cli.commands.plan_file import write
from orchestrator.cli.display.formats import plural, ratio
from orchestrator.cli.display.tables import Column, table
from orchestrator.errors import NotFound, StateError
from orchestrator.formatting import NONE

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.config.job import JobConfig
    from orchestrator.scaling.plan.lr_search import Found, Rate, Step, Tried
    from orchestrator.scaling.types import JobMeasurement
    from orchestrator.settings import Settings

POLL_SECONDS = 2.0
_SIGNS = {"waiting": "…", "converged": "", "unconverged": "~", "diverged": "!", "given up": "–", "failed": "✗"}


class Asked(NamedTuple):
    """What is searched: the first sweep is added to, all of them are looked at."""

    sweeps: tuple[str, ...]
    sizes: tuple[int, ...]
    """Beside those the sweeps have."""
    ks: tuple[int, ...]
    """Empty: every k the sweeps have."""


def search(settings: "Settings", engine: "Engine", asked: Asked, follow: bool, output: str | None) -> None:
    """Print what is known and what comes next; with `follow`, do it until each size is bracketed.

    Raises:
        NotFound: an unknown sweep, or one without a job.
        ConfigError: jobs of several subjects.
        StateError: the search cannot go on at some size: which, and what to do.
    """
    if follow:
        _follow(settings, engine, asked)
    step, rows = _look(engine, asked)
    _show(step, output)
    if not follow:
        _offer(engine, asked, step, rows, output)
        return
    troubles = {size: found.trouble for size, found in step.found.items() if found.trouble}
    for (n_latents, k), trouble in troubles.items():
        first, _, hint = trouble.partition(": ")
        raise StateError(f"the search at n_latents = {n_latents}, k = {k} cannot go on: {first}", hint=hint)


def _look(engine: "Engine", asked: Asked) -> "tuple[Step, list[JobMeasurement]]":
    from orchestrator.fits.forecast_inputs import check_one_kind
    from orchestrator.results.fit_rows import measured
    from orchestrator.scaling.plan.forecast import check_size
    from orchestrator.scaling.plan.lr_search import next_step

    rows = [row for row in measured(engine, asked.sweeps) if not asked.ks or row.k in asked.ks]
    ks = asked.ks or tuple(sorted({row.k for row in rows}))
    if not rows:
        raise NotFound(
            f"no job of {', '.join(asked.sweeps)} has such a k" if asked.ks else f"{asked.sweeps[0]} has no job",
            hint="A search takes all but n, k and lr from a job: enqueue one first.",
        )
    check_one_kind(rows)
    sizes = [(n_latents, k) for n_latents in asked.sizes for k in ks]
    for size in sizes:
        check_size(*size)
    return next_step(rows, sizes=sizes), rows


def _follow(settings: "Settings", engine: "Engine", asked: Asked) -> None:
    """Enqueue, watch and cancel until nothing is left to do. All it knows is in the database: end it at any time."""
    from orchestrator import results

    if not results.registered_workers(engine):
        terminal.note("No worker is at work. Start one with: orch worker")
    told: dict[tuple[int, float | None], str] = {}
    stopped: set[int] = set()
    while True:
        step, rows = _look(engine, asked)
        _cancel(engine, [job_id for job_id in step.cancel if job_id not in stopped])
        stopped |= set(step.cancel)  # once: who lets such a job go on after all will have a reason
        _enqueue(settings, engine, asked.sweeps[0], _configs(engine, step.enqueue, rows))
        for (n_latents, k), found in step.found.items():
            for one in found.tried:
                if told.get((one.job_id, one.lr)) != one.fate:
                    told[one.job_id, one.lr] = one.fate
                    terminal.note(f"job {one.job_id}  n={n_latents} k={k} lr={_rate(one.lr)}  {one.fate}")
        if step.is_done:
            return
        time.sleep(POLL_SECONDS)


def _cancel(engine: "Engine", job_ids: Sequence[int]) -> None:
    from orchestrator import queue

    for job_id in job_ids:
        try:
            change = queue.cancel(engine, [job_id])[0]
        except StateError:
            continue  # it has ended meanwhile
        terminal.note(f"job {job_id}  cannot catch up: {change.effect}")


def _enqueue(settings: "Settings", engine: "Engine", name: str, configs: "Sequence[JobConfig]") -> None:
    """Add configs to a sweep; what it holds already, by another search at the same time, is not added again."""
    from orchestrator import queue
    from orchestrator.dispatch import wake
    from orchestrator.results.stored_configs import stored_sweep

    if configs:
        added = queue.enqueue(engine, replace(stored_sweep(engine, name), configs=tuple(configs)))
        wake(settings, [job_id for job_id in added.job_ids if job_id is not None])


def _configs(engine: "Engine", wanted: "Sequence[Rate]", rows: "Sequence[JobMeasurement]") -> "list[JobConfig]":
    """Return the configs of rates: all else as in a job of the same size, else as in one of the nearest."""
    from orchestrator.results.stored_configs import configs
    from orchestrator.scaling.plan.forecast import sized

    found = []
    for rate in wanted:
        near = min(rows, key=lambda row: (_distance(row, rate), row.k != rate.k, row.seed, row.job_id))
        base = configs(engine, [near.job_id])[near.job_id]
        config = sized(base, rate.n_latents, rate.k, max_tokens=base.training.max_tokens)
        lr: Any = "auto" if rate.lr is None else rate.lr
        found.append(config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"lr": lr})}))
    return found


def _distance(row: "JobMeasurement", rate: "Rate") -> float:
    import math

    return abs(math.log((row.n_latents or 1) / rate.n_latents))


def _offer(engine: "Engine", asked: Asked, step: "Step", rows: "Sequence[JobMeasurement]", output: str | None) -> None:
    if output != "json":
        for job_id in step.cancel:
            terminal.note(f"Job {job_id} cannot catch up any more: orch cancel {job_id}")
        if step.is_done:
            terminal.note("The search has ended: nothing is left to try.")
        elif not step.enqueue:
            terminal.note("Nothing to add before a job has ended.")
        else:
            terminal.note(f"{plural(len(step.enqueue), 'job')} to add; to do all of it: the same, with --follow")
    head = [
        f"Written by: orch plan {' '.join(asked.sweeps)} --lr",
        "The next learning rates to try, by factors of two.",
    ]
    write(engine, asked.sweeps[0], _configs(engine, step.enqueue, rows), head=head, output=output)


def _show(step: "Step", output: str | None) -> None:
    added: dict[tuple[int, int], list[float | None]] = {}
    for rate in step.enqueue:
        added.setdefault((rate.n_latents, rate.k), []).append(rate.lr)
    if output == "json":
        items = (found_record(size, found, added.get(size, [])) for size, found in step.found.items())
        terminal.echo_json(terminal.envelope("rates", items) | {"cancel": list(step.cancel)})
        return
    columns: list[Column[tuple[tuple[int, int], Found]]] = [
        Column("N", lambda row: str(row[0][0]), right=True),
        Column("K", lambda row: str(row[0][1]), right=True),
        Column("LARGEST", lambda row: _rate(row[1].largest_converging, NONE), right=True),
        Column("BEST", lambda row: _rate(row[1].best, NONE), right=True),
        Column("NEXT", lambda row: ", ".join(map(_rate, added.get(row[0], []))) or NONE, right=True),
        Column("STATE", lambda row: row[1].trouble or ("bracketed" if row[1].is_bracketed else "open")),
        Column("FVU BY LR", lambda row: "  ".join(map(_tried, row[1].tried)), weight=3),
    ]
    say = terminal.note if output == "-" else terminal.echo
    for line in table(list(step.found.items()), columns, width=terminal.width()):
        say(line)
    terminal.note(
        "\nLARGEST: the largest lr that converges. ~ not converged  ! diverged  – given up  … not ended  ✗ failed"
    )


def found_record(size: tuple[int, int], found: "Found", added: Sequence[float | None]) -> dict[str, Any]:
    """Return what is known of one size for a program."""
    return {
        "n_latents": size[0], "k": size[1], "largest_converging": found.largest_converging, "best": found.best,
        "is_bracketed": found.is_bracketed, "trouble": found.trouble or None,
        "next": ["auto" if lr is None else lr for lr in added], "tried": [one._asdict() for one in found.tried],
    }  # fmt: skip


def _tried(one: "Tried") -> str:
    told = ratio(one.fvu) if one.fvu is not None and one.fate != "diverged" else ""
    return f"{_rate(one.lr)}:{told}{_SIGNS[one.fate]}"


def _rate(lr: float | None, without: str = "auto") -> str:
    return without if lr is None else f"{lr:.4g}"
