"""Scores beside what is known of the jobs that trained the SAEs, for figures and tables of a sweep."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import Engine, case, select
from sqlalchemy.orm import aliased

from orchestrator.config.evaluation.layer_variants import MEAN, VARIATION, over_all, over_shown, read_variant
from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.evaluation.measured_options import measured_options
from orchestrator.formatting import Interval, named
from orchestrator.scaling.types import JobMeasurement

_NORMAL_90 = 1.6448536269514722
"""Standard errors to each end of a 90% interval."""


_DRAWN = ("layer_mean", "prompt_latents")
"""Metrics of which details are drawn: heat maps of layers and latents."""


class SweepScores(NamedTuple):
    """What evaluations measured of the SAEs of sweeps: of each metric family on one text, so that they compare."""

    by_job: dict[int, dict[str, Interval]]
    """By the job that trained each SAE, by metric and variant."""
    texts: dict[str, str]
    """By metric family: how many tokens of which text it was measured on, and options that were not the defaults; of
    several, those which most SAEs have."""
    details: dict[int, dict[str, dict[str, Any]]]
    """By job and metric: what belongs to a score and is drawn, and under `measured_on` the text."""


def with_scores(rows: Sequence[JobMeasurement], scores: SweepScores) -> list[JobMeasurement]:
    """Return jobs with the scores of their SAEs."""
    return [
        replace(row, scores=scores.by_job.get(row.job_id, {}), score_details=scores.details.get(row.job_id, {}))
        for row in rows
    ]


def sweep_scores(engine: Engine, sweeps: Collection[str]) -> SweepScores:
    """Return the newest scores of the SAEs of sweeps.

    Those of hidden evaluations are left out, and those of before a job was extended.

    Raises:
        StorageError: the database did not answer.
    """
    score, sae, job, measuring, family = m.ScoreRow, m.SaeRow, m.Job, aliased(m.Job), m.MeasuredFamily
    values = (score.family, score.metric, score.variant, score.value, score.std_error, score.low, score.high)
    # Others have large details, too, and nobody draws them.
    is_drawn = score.metric.in_(_DRAWN) & (score.variant == "")
    told = case((is_drawn | score.variant.endswith(MEAN), score.details)).label("told")
    query = select(sae.job_id, score.job_id.label("by"), *values, told, family.tokens, family.measured_on)
    query = query.join(sae, sae.id == score.sae_id)
    query = query.outerjoin(family, (family.job_id == score.job_id) & (family.family == score.family))
    query = query.join(job, job.id == sae.job_id)
    query = query.join(m.SweepRow, m.SweepRow.id == job.sweep_id).where(m.SweepRow.name.in_(sweeps))
    query = query.join(measuring, measuring.id == score.job_id).where(measuring.hidden.is_(None))
    query = query.where(score.sae_attempt == sae.attempt, score.value.is_not(None)).order_by(score.id)
    with reading(engine) as session:
        rows = session.execute(query).all()
        options = measured_options(session, {row.by for row in rows})
    conditions = [(row.measured_on, row.tokens, options[row.by, row.family]) for row in rows]
    most_common = _most_common(rows, conditions)
    found: dict[int, dict[str, Interval]] = {}
    details: dict[int, dict[str, dict[str, Any]]] = {}
    means: dict[tuple[int, str, str], list[int]] = {}
    for row, measured in zip(rows, conditions, strict=True):
        if measured == most_common[row.family]:
            name = f"{row.metric} {row.variant}".strip()
            found.setdefault(row.job_id, {})[name] = _interval(row.value, row.std_error, row.low, row.high)
            said = read_variant(row.variant)
            if said and said.over == MEAN:
                means[row.job_id, row.metric, said.variant] = (row.told or {}).get("layers", [])
            elif row.told:
                details.setdefault(row.job_id, {})[name] = {**row.told, "measured_on": row.measured_on}
    for (job_id, metric, variant), layers in means.items():
        _of_layers_shown(found[job_id], metric, variant, layers)
    return SweepScores(found, {name: _told(*how) for name, how in most_common.items()}, details)


def _of_layers_shown(scores: dict[str, Interval], metric: str, variant: str, stored_of: Collection[int]) -> None:
    """Put the mean over the layers that a score has, and their variation, in the place of those of other layers."""
    shown = {}
    for name, score in scores.items():
        said = read_variant(name.removeprefix(f"{metric} ")) if name.startswith(f"{metric} ") else None
        if said and said.layer is not None and said.variant == variant:
            shown[said.layer] = score.value
    found = over_shown(shown, stored_of)
    if found is None:
        return
    for over in (MEAN, VARIATION):
        scores.pop(f"{metric} {over_all(over, variant)}", None)
    scores |= {f"{metric} {over_all(over, variant)}": _interval(one, None, None, None) for over, one in found.items()}


_Conditions = tuple[str | None, int | None, str]
"""The text, how many tokens of it, and the options that were not the defaults."""


def _most_common(rows: Sequence[Any], conditions: Sequence[_Conditions]) -> dict[str, _Conditions]:
    """Return for each family the conditions under which most SAEs have it; of several those that came last."""
    jobs: dict[str, dict[_Conditions, set[int]]] = {}
    for row, measured in zip(rows, conditions, strict=True):
        jobs.setdefault(row.family, {}).setdefault(measured, set()).add(row.job_id)
    return {name: max(reversed(found), key=lambda how: len(found[how])) for name, found in jobs.items()}


def _told(text: str | None, tokens: int | None, options: str) -> str:
    on = f"{named(tokens, 'token')} of {text}" if text and tokens else text or ""
    return "; ".join(filter(None, (on, options)))


def _interval(value: float, std_error: float | None, low: float | None, high: float | None) -> Interval:
    if low is not None and high is not None:
        return Interval(value, low, high)
    reach = math.nan if std_error is None else _NORMAL_90 * std_error
    return Interval(value, value - reach, value + reach)
