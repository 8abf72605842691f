"""The options that evaluations were asked with, read from what they were asked."""

import json
from collections.abc import Collection

from sqlalchemy import select
from sqlalchemy.orm import Session

from orchestrator.config.evaluation.changed_options import changed_options
from orchestrator.database.models import Job

_IDS_PER_QUERY = 10_000


def measured_options(session: Session, job_ids: Collection[int]) -> dict[tuple[int, str], str]:
    """Return, by evaluation job and metric family, what its scores depend on that was not the default."""
    found: dict[tuple[int, str], str] = {}
    ids = sorted(job_ids)
    for start in range(0, len(ids), _IDS_PER_QUERY):
        for job_id, config in session.execute(
            select(Job.id, Job.config).where(Job.id.in_(ids[start : start + _IDS_PER_QUERY]))
        ):
            found |= {(job_id, family): told for family, told in changed_options(json.loads(config)).items()}
    return found
