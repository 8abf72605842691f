"""The configs of a sweep as a table: the keys that vary, what each costs, and which are in the queue already."""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.cli import terminal
from orchestrator.cli.display.budget_notes import BudgetNote, dead_note, passes_note, told_once
from orchestrator.cli.display.formats import passes, scientific, short_id
from orchestrator.cli.display.tables import Column, table
from orchestrator.config.flat_keys import flatten, varied_keys
from orchestrator.formatting import count, duration, jobs_named, named

if TYPE_CHECKING:
    from orchestrator.config.job import JobConfig, SubjectConfig
    from orchestrator.estimates.flops import Cost
    from orchestrator.estimates.text_size import TextSize
    from orchestrator.results import MeasuredSpeed

ROWS_SHOWN = 40


@dataclass(frozen=True)
class PlannedJob:
    """One config of a sweep, with its cost and its job."""

    config: "JobConfig"
    d_model: int | None
    """Of its hook point; None = known only when the subject is loaded."""
    job_id: int | None
    """Its id in the queue; None in a dry run, and where the sweep holds the config already."""
    is_new: bool
    text: "TextSize | None" = None
    """How much text there is, as far as that is known before it runs."""
    time: "tuple[float, MeasuredSpeed] | None" = None
    """Seconds to the end of its budget on this host, and by what was measured; None where nothing was, or unasked."""

    @cached_property
    def cost(self) -> "Cost":
        """What it costs at most."""
        from orchestrator.estimates.flops import estimate

        return estimate(self.config, self.d_model)

    @property
    def passes(self) -> float | None:
        """Return how many passes over its text its budget is."""
        return None if self.text is None else self.text.passes(self.config.training.max_tokens)


@dataclass(frozen=True)
class SweepPlan:
    """The jobs of a sweep, each made when it is asked for: of a hundred thousand few are shown."""

    configs: "Sequence[JobConfig]"
    job_ids: Sequence[int | None]
    new: Sequence[bool]
    texts: "Sequence[TextSize | None]"
    times: "Sequence[tuple[float, MeasuredSpeed] | None]" = ()
    """Of each job; empty: unasked."""

    @cached_property
    def _widths(self) -> "dict[SubjectConfig, int | None]":
        from orchestrator.estimates.flops import hook_width

        return {subject: hook_width(subject) for subject in {config.subject for config in self.configs}}

    @property
    def added(self) -> int:
        """Return how many jobs are new."""
        return sum(self.new)

    def __len__(self) -> int:
        return len(self.configs)

    def __getitem__(self, at: int) -> PlannedJob:
        config, time = self.configs[at], self.times[at] if self.times else None
        width = self._widths[config.subject]
        return PlannedJob(config, width, self.job_ids[at], self.new[at], self.texts[at], time)

    def __iter__(self) -> Iterator[PlannedJob]:
        return map(self.__getitem__, range(len(self)))

    def fresh(self) -> Iterator[PlannedJob]:
        """Yield the new jobs."""
        return (self[at] for at, is_new in enumerate(self.new) if is_new)

    @cached_property
    def kinds(self) -> list[tuple[PlannedJob, int]]:
        """The new jobs by what their cost and their notes depend on: the first of each kind, and how many they are."""
        first, number = dict[Hashable, int](), Counter[Hashable]()
        for at, (config, is_new, text) in enumerate(zip(self.configs, self.new, self.texts, strict=True)):
            if is_new:
                training = config.training
                kind = config.subject, config.sae, training.max_tokens, training.dead_after_tokens, text
                first.setdefault(kind, at)
                number[kind] += 1
        return [(self[at], number[kind]) for kind, at in first.items()]


def budget_notes(plan: SweepPlan) -> list[BudgetNote]:
    """Return what the budgets of the new jobs cannot do."""
    dead = told_once((dead_note(job.config, job.d_model), number) for job, number in plan.kinds)
    return dead + told_once((passes_note(job.config, job.text), number) for job, number in plan.kinds)


def sweep_lines(plan: SweepPlan, *, width: int | None) -> list[str]:
    """Return the table, its middle left out where it is long."""
    varied = _varied(plan.configs)
    lasts = [key.rpartition(".")[2] for key in varied]
    titles = {key: last if lasts.count(last) == 1 else key for key, last in zip(varied, lasts, strict=True)}

    def varying(key: str) -> "Column[tuple[PlannedJob, dict[str, Any]]]":
        return Column(titles[key], lambda row: _value(row[1][key]), right=True)

    columns: list[Column[tuple[PlannedJob, dict[str, Any]]]] = [
        Column("JOB", lambda row: _job_cell(row[0]), right=True),
        *map(varying, varied),
        Column("TOKENS", lambda row: count(row[0].config.training.max_tokens), right=True, weight=5),
        Column("PASSES", lambda row: _passes_cell(row[0]), right=True, weight=4),
        Column("FLOPS", lambda row: scientific(row[0].cost.flops_dense), right=True, weight=4),
        Column("CONFIG", lambda row: row[0].config.config_id[:10], weight=3),
    ]
    if all(text is None for text in plan.texts):
        columns = [column for column in columns if column.title != "PASSES"]
    places = list(range(len(plan)))
    more = len(places) - ROWS_SHOWN
    shown = places if more <= 0 else places[: ROWS_SHOWN // 2] + places[-ROWS_SHOWN // 2 :]
    rows = [(job, flatten(job.config.model_dump(mode="json"))) for job in map(plan.__getitem__, shown)]
    lines = table(rows, columns, width=width)
    if more > 0:
        lines.insert(1 + ROWS_SHOWN // 2, terminal.style(f"… {more:,} more …", dim=True))
    return lines


def total_line(plan: SweepPlan) -> str:
    """Return what the new jobs cost at most."""
    tokens, flops, is_known = 0, 0.0, True
    for job, number in plan.kinds:
        dense = job.cost.flops_dense
        tokens, flops = tokens + number * job.cost.tokens, flops + number * (dense or 0.0)
        is_known = is_known and dense is not None
    return f"at most {count(tokens)} training tokens" + (f", {scientific(flops)} FLOPs" if is_known else "")


def time_line(plan: SweepPlan) -> str:
    """Say how long the new jobs take on this host, one after another, and what that was measured on."""
    timed = [job.time for job in plan.fresh() if job.time is not None]
    if not timed:
        return "Time: not known, for no job like these has ended on this host"
    ids = sorted({job_id for _, found in timed for job_id in found.jobs})
    total = duration(sum(seconds for seconds, _ in timed))
    unlike = plan.added - len(timed)
    rest = f", {named(unlike, 'job')} of unknown time" if unlike else ""
    measured = f"measured on {jobs_named(ids, most=4)}"
    return f"Time: about {total} of training on this host with one worker{rest}, and each trainer's start ({measured})"


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
        "measures_dead_latents": dead_note(job.config, job.d_model) is None,
        "config": job.config.model_dump(mode="json"),
    }


def _varied(configs: "Sequence[JobConfig]") -> list[str]:
    """Return the dotted keys that vary; configs share the parts that are equal, so that these are read once."""
    found: list[str] = []
    for name in type(configs[0]).model_fields if configs else ():
        parts = {id(part): part for part in (getattr(config, name) for config in configs)}
        found += varied_keys(flatten(part.model_dump(mode="json"), f"{name}.") for part in parts.values())
    return found


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
    return f"{value:g}" if isinstance(value, float) else short_id(str(value))
