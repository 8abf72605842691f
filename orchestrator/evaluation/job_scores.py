"""Scores beside what is known of the jobs that trained the SAEs, for figures and tables of a sweep."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from sqlalchemy import Engine, select
from sqlalchemy.orm import aliased

from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.formatting import Interval
from orchestrator.scaling.types import JobMeasurement

_NORMAL_90 = 1.6448536269514722
"""Standard errors to each end of a 90% interval."""


def with_scores(engine: Engine, rows: Sequence[JobMeasurement]) -> list[JobMeasurement]:
    """Return jobs with the newest scores of their SAEs; those of before a job was extended are left out.

    Raises:
        StorageError: the database did not answer.
    """
    found = scores_by_job(engine, {row.sweep for row in rows})
    return [replace(row, scores=found[row.job_id]) if row.job_id in found else row for row in rows]


def scores_by_job(engine: Engine, sweeps: Collection[str]) -> dict[int, dict[str, Interval]]:
    """Return the newest scores of the SAEs of sweeps, by the job that trained each, by metric and variant.

    Those of hidden evaluations are left out.

    Raises:
        StorageError: the database did not answer.
    """
    score, sae, job, measuring = m.ScoreRow, m.SaeRow, m.Job, aliased(m.Job)
    values = (score.metric, score.variant, score.value, score.std_error, score.low, score.high)
    query = select(sae.job_id, *values).join(sae, sae.id == score.sae_id).join(job, job.id == sae.job_id)
    query = query.join(m.SweepRow, m.SweepRow.id == job.sweep_id).where(m.SweepRow.name.in_(sweeps))
    query = query.join(measuring, measuring.id == score.job_id).where(measuring.hidden.is_(None))
    query = query.where(score.sae_attempt == sae.attempt, score.value.is_not(None)).order_by(score.id)
    found: dict[int, dict[str, Interval]] = {}
    with reading(engine) as session:
        for row in session.execute(query):
            name = f"{row.metric} {row.variant}".strip()
            found.setdefault(row.job_id, {})[name] = _interval(row.value, row.std_error, row.low, row.high)
    return found


def _interval(value: float, std_error: float | None, low: float | None, high: float | None) -> Interval:
    if low is not None and high is not None:
        return Interval(value, low, high)
    reach = math.nan if std_error is None else _NORMAL_90 * std_error
    return Interval(value, value - reach, value + reach)
