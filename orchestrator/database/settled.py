"""What the attempts of a job settled for the later ones: the precision that `subject.dtype: auto` came to."""

from functools import cache

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from orchestrator.database.models import Attempt, Job


@cache
def settled_dtype() -> ColumnElement[str | None]:
    """Return the expression on a job for its subject's precision; NULL where none was left open, or none has begun."""
    dtype = Attempt.facts["subject_dtype"].as_string()
    newest = select(dtype).where(Attempt.job_id == Job.id, dtype.is_not(None)).order_by(Attempt.attempt.desc())
    return newest.limit(1).correlate(Job).scalar_subquery()


def dtype_of(session: Session, job_id: int) -> str | None:
    """Return the same of one job."""
    return session.scalar(select(settled_dtype()).where(Job.id == job_id))
