"""A larger budget for jobs: they go on from their last checkpoints, each as the same job with the same curve."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy import Engine, Row, delete, func, insert, select, update
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import Attempt, CheckpointRow, ConvergenceRow, Event, Job, ResultRow
from orchestrator.errors import NotFound, StateError
from orchestrator.job_states import State
from orchestrator.queue.types import Change

if TYPE_CHECKING:
    from orchestrator.config.job import JobConfig

_BUDGETS = ("failures", "preemptions", "lost_in_row")
_REFUSED = {
    "running": "is running: pause it first, then extend and resume it",
    "failed": "has failed: retry it first",
    "cancelled": "is cancelled: retry it first",
    "converged": "has converged: it stopped by its own rule, and would stop there with any larger budget",
    "diverged": "has diverged: there is nothing to go on from",
}

_NO_TRAINING = {
    "evaluate": "is an evaluation, which has no budget of tokens to train on",
    "lens": "trains a lens: enqueue it anew with the larger budget, orch lens train",
}


class _Standing(NamedTuple):
    """What a job has come to before it is extended."""

    job: Row[Any]
    outcome: str | None
    trained: int | None
    """Tokens of its newest checkpoint."""
    lr: float | None


def extend(engine: Engine, job_ids: Sequence[int], *, max_tokens: int) -> list[Change]:
    """Give jobs a larger budget: those that have used theirs are queued again, those that wait go on waiting.

    A job's config is superseded by one with the new budget, and kept. `optimizer.lr: auto` and
    `training.dead_after_tokens: auto` stay what they came to. Its result goes, and is made anew at the end.

    Raises:
        StateError: the only job named cannot go on: the message says why.
        NotFound: a job that does not exist.
    """
    found: dict[int, Change] = {}
    for job_id in sorted(set(job_ids)):  # a transaction each: few are extended, and each has rows of its own
        with transaction(engine) as session:
            standing = _standing(session, job_id)
            refused = _refusal(standing, max_tokens)
            if refused and len(set(job_ids)) == 1:
                raise StateError(f"cannot extend job {job_id}: it {refused}", hint=f"orch show {job_id}")
            found[job_id] = (
                Change(job_id, cast(State, standing.job.state), refused)
                if refused
                else _extend(session, standing, max_tokens)
            )
    return [found[job_id] for job_id in dict.fromkeys(job_ids)]


def _standing(session: Session, job_id: int) -> _Standing:
    row = session.execute(select(Job.__table__).where(Job.id == job_id).with_for_update()).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}", hint="orch status lists them")
    outcome = session.scalar(select(ResultRow.outcome).where(ResultRow.job_id == job_id))
    trained = session.scalar(select(func.max(CheckpointRow.tokens_seen)).where(CheckpointRow.job_id == job_id))
    told = select(Attempt.facts).where(Attempt.job_id == job_id).order_by(Attempt.attempt.desc())
    rates = [facts["lr"] for facts in session.scalars(told) if facts and facts.get("lr") is not None]
    return _Standing(row, outcome, trained, rates[0] if rates else None)


def _refusal(standing: _Standing, max_tokens: int) -> str:
    """Return why a job cannot go on to a budget; empty where it can."""
    job, outcome, trained, _ = standing
    if job.hidden == "deleted":
        return "is deleted"
    if job.kind != "train":
        return _NO_TRAINING[job.kind]
    refused = _REFUSED.get(job.state, "") or _REFUSED.get(outcome or "", "")
    if refused:
        return refused
    if job.max_tokens >= max_tokens:
        return f"has a budget of {job.max_tokens:,} tokens already"
    if job.state == "succeeded" and trained is None:
        return "has no checkpoint any more (orch gc removes them): enqueue it anew with the larger budget"
    decay = _config(job).optimizer.decay_tokens
    if decay and trained is not None and trained > job.max_tokens - decay:
        return (
            f"has decayed its learning rate (optimizer.decay_tokens = {decay:,}): what would follow is no part of the"
            " same curve. Enqueue it anew with the larger budget"
        )
    return ""


def _config(job: Row[Any]) -> "JobConfig":
    from orchestrator.config.validation import read_stored

    return read_stored(job.config, job.config_id)


def _extend(session: Session, standing: _Standing, max_tokens: int) -> Change:
    from orchestrator.config.extension import extended

    job, outcome, trained, lr = standing
    has_trained = trained is not None
    config = extended(
        _config(job), max_tokens, lr=lr if has_trained else None, d_model=job.d_model if has_trained else None
    )
    values: dict[str, Any] = dict.fromkeys(_BUDGETS, 0)
    if job.state == "succeeded":
        values |= {"state": "queued", "desired": "run", "not_before": 0.0}
        values |= dict.fromkeys(("finished_at", "hidden", "company"))
        session.execute(delete(ConvergenceRow).where(ConvergenceRow.job_id == job.id))
        session.execute(delete(ResultRow).where(ResultRow.job_id == job.id))
    asked = job.asked_config or job.config
    values |= {"config": config.canonical_json(), "max_tokens": max_tokens, "asked_config": asked}
    session.execute(update(Job).where(Job.id == job.id).values(**values))
    data = {"from_tokens": job.max_tokens, "to_tokens": max_tokens, "trained": trained, "outcome": outcome}
    session.execute(insert(Event).values(job_id=job.id, at=db_now(), kind="extended", data=data))
    state = cast(State, values.get("state", job.state))
    return Change(job.id, state, f"{state}, {job.max_tokens:,} to {max_tokens:,} tokens")
