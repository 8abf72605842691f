"""The learning rate a job trains with: the one asked for, or what `auto` came to."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, func, select

from orchestrator.database.models import Attempt, Job


def trained_lr() -> ColumnElement[float | None]:
    """Return the expression on a job for its learning rate; NULL where it is auto and no attempt has begun.

    Facts come first: a worker of an earlier version may have written the rate of an earlier attempt over the column.
    """
    resolved = Attempt.facts["lr"].as_float()
    newest = select(resolved).where(Attempt.job_id == Job.id, resolved.is_not(None)).order_by(Attempt.attempt.desc())
    return func.coalesce(newest.limit(1).correlate(Job).scalar_subquery(), Job.lr)


def lr_of(asked: float | None, facts: Mapping[str, Any]) -> float | None:
    """Return the same from a job's row and its newest attempt's facts, every bit of it."""
    resolved: float | None = facts.get("lr")
    return asked if resolved is None else resolved
