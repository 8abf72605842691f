"""Evaluation jobs as a person sees them."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Engine, select

from orchestrator import results, saes
from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.results import JobRow

_OF_JOB = (
    "state", "desired", "priority", "attempt", "failures", "preemptions", "seed", "max_tokens", "tokens_seen",
    "created_at", "started_at", "finished_at", "age", "worker", "lease_left", "reason", "config_id", "mlflow_run_id",
    "hidden",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """What an evaluation job did of one metric family."""

    family: str
    attempt: int
    state: str
    """measured or failed."""
    error: str | None
    wall_seconds: float | None
    uri: str | None
    """The folder of what is kept beside the scores."""
    tokens: int | None
    measured_on: str | None
    """The text."""
    at: float


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One evaluation job."""

    id: int
    sweep: str
    sae: str | None
    """The shortest selector that means its SAE; None: it is gone."""
    metrics: tuple[str, ...]
    """The metric families of its config."""
    source: str
    """The text, as its config names it."""
    families: tuple[FamilyRow, ...]
    job: JobRow

    def flat(self) -> dict[str, Any]:
        """Return it as values by name, a program's: of its job what an evaluation has, of its families all."""
        own = {name: getattr(self.job, name) for name in _OF_JOB}
        told = {name: getattr(self, name) for name in ("id", "sweep", "sae", "metrics", "source", "progress")}
        return told | own | {"families": [asdict(row) for row in self.families]}

    @property
    def measured(self) -> int:
        """Return how many of its families are measured."""
        return sum(row.state == "measured" for row in self.families)

    @property
    def progress(self) -> float:
        """Return which share of its work is done: families that are measured, and of a running one its part."""
        if self.job.state == "succeeded":
            return 1.0
        part = min(1.0, self.job.tokens_seen / self.job.max_tokens) if self.job.state == "running" else 0.0
        return max(self.measured / len(self.metrics), part)


def evaluations(
    engine: Engine, *, ids: Collection[int] | None = None, states: Sequence[str] | None = None, limit: int | None = None
) -> list[EvaluationRow]:
    """Return evaluation jobs by id, those that fit every condition given; with `limit` the first so many.

    Raises:
        StorageError: the database did not answer.
    """
    rows = results.jobs(engine, ids=ids, states=states, limit=limit, kind="evaluate")
    if not rows:
        return []
    shown = [row.id for row in rows]
    columns = [getattr(m.MeasuredFamily, name) for name in FamilyRow.__slots__]
    measured = select(m.MeasuredFamily.job_id, *columns).where(m.MeasuredFamily.job_id.in_(shown))
    with reading(engine) as session:
        configs = {
            row.id: (row.sae_id, json.loads(row.config))
            for row in session.execute(select(m.Job.id, m.Job.sae_id, m.Job.config).where(m.Job.id.in_(shown)))
        }
        families: dict[int, list[FamilyRow]] = {job_id: [] for job_id in shown}
        for job_id, *values in session.execute(measured.order_by(m.MeasuredFamily.at)):
            families[job_id].append(FamilyRow(*values))
        labels = {one.id: one.label for one in saes.read(session, [sae for sae, _ in configs.values() if sae])}
    return [
        EvaluationRow(
            id=row.id, sweep=row.sweep, sae=labels.get(configs[row.id][0]),
            metrics=tuple(configs[row.id][1]["plan"]["metrics"]), source=configs[row.id][1]["data"]["source"],
            families=tuple(families[row.id]), job=row,
        )
        for row in rows
    ]  # fmt: skip
