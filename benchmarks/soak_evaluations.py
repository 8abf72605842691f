"""Summarise the evaluations of a soak: what was lost, measured twice, or came to other scores."""

from collections import Counter, defaultdict
from typing import Any, NamedTuple

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from benchmarks.light_evaluation import expected_scores
from orchestrator.config.job import JobConfig
from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt, Event, Job, MeasuredFamily, SaeRow, ScoreRow, SweepRow


class Evaluations(NamedTuple):
    """What the evaluations came to."""

    figures: dict[str, int]
    lost: list[str]
    """SAEs without the evaluation that their sweep asks for, and evaluations that are not over, or not whole."""
    doubled: list[str]
    """SAEs with two evaluations, families that were stored twice, evaluations that ended twice."""
    altered: list[str]
    """Evaluations whose scores are not those of a run without faults."""


def evaluations(engine: Engine, *, are_light: bool) -> Evaluations:
    """Read the evaluations; the scores are known of light ones only."""
    with reading(engine) as session:
        jobs = session.execute(select(Job.id, Job.sae_id, Job.state).where(Job.kind == "evaluate")).all()
        states = {job.id: job.state for job in jobs}
        lost, doubled = _by_sae(session), _twice(session)
        cancelled = set(session.scalars(select(Event.job_id).where(Event.kind.in_(("cancel", "cancel_asked")))))
        lost += [
            f"evaluation {job_id} is {state}"
            for job_id, state in states.items()
            if state != "succeeded" and not (state == "cancelled" and job_id in cancelled)
        ]
        altered = _altered(session) if are_light else []
        figures = _figures(session, states)
    counts = {"evaluations lost": len(lost), "evaluations doubled": len(doubled), "scores altered": len(altered)}
    return Evaluations(figures | counts, lost, doubled, altered)


def _by_sae(session: Session) -> list[str]:
    """Return the SAEs of finished trainings without the evaluation that is asked for."""
    asked = select(Job.id).join(SweepRow, SweepRow.id == Job.sweep_id)
    asked = asked.where(Job.kind == "train", Job.state == "succeeded", SweepRow.evaluation.is_not(None))
    there = select(SaeRow.job_id).join(Job, Job.sae_id == SaeRow.id).where(Job.kind == "evaluate")
    missing = set(session.scalars(asked)) - set(session.scalars(there))
    return [f"the SAE of job {job_id} has no evaluation" for job_id in sorted(missing)]


def _twice(session: Session) -> list[str]:
    saes = select(Job.sae_id).where(Job.kind == "evaluate").group_by(Job.sae_id).having(func.count() > 1)
    ends = select(Attempt.job_id).where(Attempt.outcome == "evaluated").group_by(Attempt.job_id)
    measured = Counter(
        (row.job_id, row.data["family"])
        for row in session.execute(select(Event.job_id, Event.data).where(Event.kind == "measured"))
    )
    return [
        *(f"SAE {sae_id} has two evaluations" for sae_id in session.scalars(saes)),
        *(f"evaluation {job_id} ended twice" for job_id in session.scalars(ends.having(func.count() > 1))),
        *(f"evaluation {job} stored {family} {times} times" for (job, family), times in measured.items() if times > 1),
    ]


def _altered(session: Session) -> list[str]:
    """Return the succeeded evaluations whose scores differ from those of the SAE that the training comes to."""
    found: dict[int, dict[tuple[str, str, str], float | None]] = defaultdict(dict)
    columns = select(ScoreRow.job_id, ScoreRow.family, ScoreRow.metric, ScoreRow.variant, ScoreRow.value)
    for row in session.execute(columns):
        found[row.job_id][row.family, row.metric, row.variant] = row.value
    trained = select(SaeRow.id, Job.config).join(Job, Job.id == SaeRow.job_id)
    configs = {row.id: JobConfig.model_validate_json(row.config) for row in session.execute(trained)}
    over = session.execute(select(Job.id, Job.sae_id).where(Job.kind == "evaluate", Job.state == "succeeded"))
    return [
        f"evaluation {job.id} has other scores" for job in over if found[job.id] != expected_scores(configs[job.sae_id])
    ]


def _figures(session: Session, states: dict[int, str]) -> dict[str, int]:
    def count(query: Any) -> int:
        return session.scalar(select(func.count()).select_from(query.subquery())) or 0

    attempts = select(Attempt.job_id).where(Attempt.job_id.in_(select(Job.id).where(Job.kind == "evaluate")))
    measured = select(MeasuredFamily.job_id).where(MeasuredFamily.state == "measured")
    several = measured.group_by(MeasuredFamily.job_id)
    return {
        "evaluations": len(states),
        "evaluations cancelled": sum(state == "cancelled" for state in states.values()),
        "evaluation attempts": count(attempts),
        "evaluation attempts that did not end it": count(attempts.where(Attempt.outcome != "evaluated")),
        "families measured": count(measured),
        "evaluations measured by several attempts": count(
            several.having(func.count(MeasuredFamily.attempt.distinct()) > 1)
        ),
        "scores": count(select(ScoreRow.id)),
    }
