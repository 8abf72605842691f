"""What a stored curve says of its job: L∞, tokens to convergence, and whether the outcome of its day still stands."""

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Engine, delete, insert, select, update

from orchestrator.database.engine import reading, transaction
from orchestrator.database.models import ConvergenceRow, CurvePoint, Job, ResultRow
from orchestrator.job_states import NO_LIMIT

if TYPE_CHECKING:
    from orchestrator.config.job import JobConfig


class Analysis(NamedTuple):
    """L∞ and the counts of one curve, as they are stored."""

    last: CurvePoint | None
    limit: dict[str, float | None]
    """l_inf and l_inf_se."""
    counts: list[dict[str, float | None]]


class Reanalysed(NamedTuple):
    """What `reanalyse` changed."""

    n_jobs: int
    """All that have a result."""
    n_limits: int
    """Jobs whose L∞ or counts are others now."""
    outcomes: dict[int, tuple[str, str]]
    """By job: the outcome it had, and the one it has now."""


def analyse(engine: Engine, job_id: int, outcome: str) -> Analysis:
    """Return what a job's stored curve says, with the rules of this version."""
    from orchestrator.curves.limit import settled
    from orchestrator.curves.outcome import at_constant_rate
    from orchestrator.curves.resting import resting_points

    points, config = _curve(engine, job_id), _config(engine, job_id)
    tail, counts = settled(at_constant_rate(resting_points(points), config), outcome)
    limit = (None, None) if tail is None else (tail.l_inf, tail.l_inf_se)
    return Analysis(
        points[-1] if points else None,
        dict(zip(("l_inf", "l_inf_se"), limit, strict=True)),
        [one._asdict() for one in counts],
    )


def reanalyse(engine: Engine) -> Reanalysed:
    """Judge every stored curve anew, one job a transaction, and store what is different; nothing is trained.

    L∞ and the counts become what this version finds. An outcome changes only where it is not true by this version's
    rules: a job that hardly learned, or ended above its untrained loss. One that an earlier rule stopped as converged
    stays so, and its counts say how much its curve settles.
    """
    with reading(engine) as session:
        columns = (ResultRow.job_id, ResultRow.outcome, ResultRow.untrained_fvu)
        stored = session.execute(select(*columns).order_by(ResultRow.job_id)).all()
    outcomes, n_limits = dict[int, tuple[str, str]](), 0
    for job_id, before, untrained in stored:
        now = _outcome_now(engine, job_id, before, untrained)
        n_limits += _replace(engine, job_id, now, analyse(engine, job_id, now))
        if now != before:
            outcomes[job_id] = before, now
    return Reanalysed(len(stored), n_limits, outcomes)


def _outcome_now(engine: Engine, job_id: int, before: str, untrained: float | None) -> str:
    from orchestrator.curves.outcome import outcome_of
    from orchestrator.curves.resting import resting_points

    points, config = resting_points(_curve(engine, job_id)), _config(engine, job_id)
    if before == "diverged" or not points:
        return before
    found = outcome_of(points, config, untrained_fvu=untrained, tokens_seen=config.training.max_tokens)
    return found if found in NO_LIMIT else before


def _replace(engine: Engine, job_id: int, outcome: str, analysis: Analysis) -> bool:
    """Store an outcome and an analysis in place of what is there; say whether the analysis is another."""
    mine = ConvergenceRow.job_id == job_id
    names = ("epsilon", "tokens", "lower_bound", "low", "high")
    with transaction(engine) as session:
        limit = session.execute(select(ResultRow.l_inf, ResultRow.l_inf_se).where(ResultRow.job_id == job_id)).one()
        query = select(*(getattr(ConvergenceRow, name) for name in names)).where(mine).order_by(ConvergenceRow.epsilon)
        before = [dict(row._mapping) for row in session.execute(query)]
        session.execute(update(ResultRow).where(ResultRow.job_id == job_id).values(outcome=outcome, **analysis.limit))
        session.execute(delete(ConvergenceRow).where(mine))
        session.execute(insert(ConvergenceRow), [{"job_id": job_id} | count for count in analysis.counts])
    return before != analysis.counts or dict(limit._mapping) != analysis.limit


def _curve(engine: Engine, job_id: int) -> list[CurvePoint]:
    with reading(engine) as session:
        query = select(CurvePoint).where(CurvePoint.job_id == job_id).order_by(CurvePoint.tokens_seen)
        points = list(session.scalars(query))
        session.expunge_all()
    return points


def _config(engine: Engine, job_id: int) -> "JobConfig":
    from orchestrator.config.validation import read_stored

    with reading(engine) as session:
        row = session.execute(select(Job.config, Job.config_id).where(Job.id == job_id)).one()
    return read_stored(row.config, row.config_id)
