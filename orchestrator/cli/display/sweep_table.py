"""The configs of a sweep as a table: the keys that vary, what each costs, and which are in the queue already."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.cli import terminal
from orchestrator.cli.display.budget_notes import BudgetNote, dead_note, passes_note, told_once
from orchestrator.cli.display.formats import passes, scientific
from orchestrator.cli.display.tables import Column, table
from orchestrator.config.flat_keys import flatten, varied_keys
from orchestrator.formatting import count, duration, jobs_named

if TYPE_CHECKING:
    from orchestrator.config.job import JobConfig
    from orchestrator.estimates.flops import Cost
    from orchestrator.estimates.text_size import TextSize
    from orchestrator.results import MeasuredSpeed

ROWS_SHOWN = 40


@dataclass(frozen=True)
class PlannedJob:
    """One config of a sweep, with its cost and its job."""

    config: "JobConfig"
    cost: "Cost"
    job_id: int | None
    """Its id in the queue; None in a dry run, and where the sweep holds the config already."""
    is_new: bool
    text: "TextSize | None" = None
    """How much text there is, as far as that is known before it runs."""
    time: "tuple[float, MeasuredSpeed] | None" = None
    """Seconds to the end of its budget on this host, and by what was measured; None where nothing was, or unasked."""

    @property
    def passes(self) -> float | None:
        """Return how many passes over its text its budget is."""
        return None if self.text is None else self.text.passes(self.cost.tokens)


def planned_jobs(
    configs: "Sequence[JobConfig]", *, job_ids: Sequence[int | None], new: Sequence[bool],
    texts: "Sequence[TextSize | None]",
) -> list[PlannedJob]:  # fmt: skip
    """Join each config with its cost, its job and the size of its text."""
    from orchestrator.estimates.flops import estimate, hook_width

    widths = {subject: hook_width(subject) for subject in {config.subject for config in configs}}
    return [
        PlannedJob(config, estimate(config, widths[config.subject]), job_id, is_new, text)
        for config, job_id, is_new, text in zip(configs, job_ids, new, texts, strict=True)
    ]


def budget_notes(jobs: Sequence[PlannedJob]) -> list[BudgetNote]:
    """Return what the budgets of the new jobs cannot do."""
    fresh = [job for job in jobs if job.is_new]
    dead = [dead_note(job.config, job.cost.d_model) for job in fresh]
    return told_once(dead) + told_once([passes_note(job.config, job.text) for job in fresh])


def sweep_lines(jobs: Sequence[PlannedJob], *, width: int | None) -> list[str]:
    """Return the table, its middle left out where it is long."""
    values = [flatten(job.config.model_dump(mode="json")) for job in jobs]
    varied = varied_keys(values)
    lasts = [key.rpartition(".")[2] for key in varied]
    titles = {key: last if lasts.count(last) == 1 else key for key, last in zip(varied, lasts, strict=True)}

    def varying(key: str) -> "Column[tuple[PlannedJob, dict[str, Any]]]":
        return Column(titles[key], lambda row: _value(row[1][key]), right=True)

    columns: list[Column[tuple[PlannedJob, dict[str, Any]]]] = [
        Column("JOB", lambda row: _job_cell(row[0]), right=True),
        *map(varying, varied),
        Column("TOKENS", lambda row: count(row[0].cost.tokens), right=True, weight=5),
        Column("PASSES", lambda row: _passes_cell(row[0]), right=True, weight=4),
        Column("FLOPS", lambda row: scientific(row[0].cost.flops_dense), right=True, weight=4),
        Column("CONFIG", lambda row: row[0].config.config_id[:10], weight=3),
    ]
    if all(job.passes is None for job in jobs):
        columns = [column for column in columns if column.title != "PASSES"]
    head, *lines = table(list(zip(jobs, values, strict=True)), columns, width=width)
    if len(lines) > ROWS_SHOWN and width is not None:
        left_out = terminal.style(f"… {len(lines) - ROWS_SHOWN} more …", dim=True)
        lines = [*lines[: ROWS_SHOWN // 2], left_out, *lines[-ROWS_SHOWN // 2 :]]
    return [head, *lines]


def total_line(jobs: Sequence[PlannedJob]) -> str:
    """Return what the new jobs cost at most."""
    fresh = [job.cost for job in jobs if job.is_new]
    flops = [cost.flops_dense for cost in fresh]
    known = [value for value in flops if value is not None]
    said = f", {scientific(sum(known))} FLOPs" if known and len(known) == len(flops) else ""
    return f"at most {count(sum(cost.tokens for cost in fresh))} training tokens{said}"


def time_line(jobs: Sequence[PlannedJob]) -> str:
    """Say how long the new jobs take on this host, one after another, and what that was measured on."""
    fresh = [job for job in jobs if job.is_new]
    timed = [job.time for job in fresh if job.time is not None]
    if not timed:
        return "Time: not known, for no job like these has ended on this host"
    ids = sorted({job_id for _, found in timed for job_id in found.jobs})
    total = duration(sum(seconds for seconds, _ in timed))
    rest = f", and {len(fresh) - len(timed)} jobs unlike them" if len(timed) < len(fresh) else ""
    return f"Time: about {total} on this host with one worker{rest} (measured on {jobs_named(ids, most=4)})"


def job_record(job: PlannedJob) -> dict[str, Any]:
    """Return one planned job for a program."""
    return {
        "id": job.job_id,
        "config_id": job.config.config_id,
        "is_new": job.is_new,
        "tokens": job.cost.tokens,
        "flops_dense": job.cost.flops_dense,
        "flops_executed": job.cost.flops_executed,
        "trainable_tokens": None if job.text is None else job.text.trainable_tokens,
        "trainable_tokens_are": None if job.text is None else job.text.how or "counted",
        "passes": job.passes,
        "seconds": None if job.time is None else job.time[0],
        "seconds_measured_on": [] if job.time is None else list(job.time[1].jobs),
        "measures_dead_latents": dead_note(job.config, job.cost.d_model) is None,
        "config": job.config.model_dump(mode="json"),
    }


def _job_cell(job: PlannedJob) -> str:
    if job.job_id is not None:
        return str(job.job_id)
    return terminal.style("new", fg="green") if job.is_new else terminal.style("there", dim=True)


def _passes_cell(job: PlannedJob) -> str:
    sign = {"at most": "≥", "about": "~"}.get(job.text.how, "") if job.text else ""
    return sign + passes(job.passes)


def _value(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:g}" if isinstance(value, float) else str(value)
