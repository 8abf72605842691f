"""The SAEs of finished jobs as rows: of a job that finishes, and of those that finished before there was a table."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, Row, Select, insert, or_, select, update
from sqlalchemy.orm import Session

from orchestrator.config.job_sae_facts import job_sae_facts
from orchestrator.config.synthetic import is_synthetic
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Attempt, Job, ResultRow, SaeRow

NATIVE = "orch"
"""The format of what jobs write."""
_PER_TRANSACTION = 1000


def record_finished(session: Session, job_id: int) -> None:
    """Enter the SAE of a job in the transaction that stores its result; one of an earlier result is replaced."""
    _record(session, session.execute(_results().where(ResultRow.job_id == job_id)).all())


def record_missing(engine: Engine) -> int:
    """Enter the SAEs of results that have none: those of before the table, or of workers of before. Return how many."""
    stale = or_(SaeRow.id.is_(None), SaeRow.attempt != ResultRow.attempt)
    query = _results().outerjoin(SaeRow, SaeRow.job_id == ResultRow.job_id).where(stale).order_by(ResultRow.job_id)
    with reading(engine) as session:
        missing = session.scalars(query.with_only_columns(ResultRow.job_id)).all()
    for first in range(0, len(missing), _PER_TRANSACTION):
        with transaction(engine) as session:  # another process may have entered some of them since
            some = ResultRow.job_id.in_(missing[first : first + _PER_TRANSACTION])
            _record(session, session.execute(query.where(some)).all())
    return len(missing)


def _results() -> Select[Any]:
    """Return the query for all that a row is made of."""
    measured = (ResultRow.fvu, ResultRow.fvu_raw, ResultRow.l0, ResultRow.artifact_uri, ResultRow.attempt)
    query = select(Job.id, Job.config, Job.d_model, *measured, Attempt.facts).select_from(ResultRow)
    query = query.join(Job, Job.id == ResultRow.job_id)
    tried = (Attempt.job_id == ResultRow.job_id) & (Attempt.attempt == ResultRow.attempt)
    return query.join(Attempt, tried).where(ResultRow.artifact_uri.is_not(None), Job.d_model.is_not(None))


def _record(session: Session, results: Sequence[Row[Any]]) -> None:
    """Enter results, or bring their rows up to date: an SAE keeps its number when its job is extended."""
    jobs = [row.id for row in results]
    known = set(session.scalars(select(SaeRow.job_id).where(SaeRow.job_id.in_(jobs))))
    for row in results:
        values = _values(row) | {"created_at": db_now()}
        change = update(SaeRow).where(SaeRow.job_id == row.id) if row.id in known else insert(SaeRow)
        session.execute(change.values(**values))


def _values(row: Row[Any]) -> dict[str, Any]:
    config, facts = json.loads(row.config), row.facts or {}
    model = config["subject"]["model"]
    return {
        **job_sae_facts(config, facts, d_model=row.d_model).columns(),
        "job_id": row.id,
        "attempt": row.attempt,
        "format": NATIVE,
        "source": f"job {row.id}",
        "uri": row.artifact_uri,
        "fvu": row.fvu,
        "fvu_raw": row.fvu_raw,
        "l0": row.l0,
        "measured_tokens": facts.get("heldout_tokens", config["training"]["heldout_tokens"]),
        "measured_on": model if is_synthetic(model) else config["data"]["source"],
        "state": "verified",
        "note": "measured on the held-out text as it was trained",
    }
