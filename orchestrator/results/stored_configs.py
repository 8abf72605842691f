"""What sweeps and their jobs were asked for: configs, and the sweep as it was enqueued."""

import json
from collections.abc import Sequence

from sqlalchemy import Engine, func, select

from orchestrator.config.evaluation.reading import parse_plan
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import read_stored
from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.database.settled import dtype_of
from orchestrator.errors import NotFound
from orchestrator.results.selectors import sweep_ids
from orchestrator.sweep.sweep import Limits, Sweep

_IDS_PER_QUERY = 10_000


def configs(engine: Engine, job_ids: Sequence[int]) -> dict[int, JobConfig]:
    """Return the configs of training jobs.

    Raises:
        NotFound: one of them does not exist, or is an evaluation.
    """
    query = select(m.Job.id, m.Job.config, m.Job.config_id).where(m.Job.kind == "train")
    parts = [job_ids[start : start + _IDS_PER_QUERY] for start in range(0, len(job_ids), _IDS_PER_QUERY)]
    with reading(engine) as session:
        rows = [row for part in parts for row in session.execute(query.where(m.Job.id.in_(part)))]
    found = {row.id: read_stored(row.config, row.config_id) for row in rows}
    for job_id in job_ids:
        if job_id not in found:
            raise NotFound(f"there is no training job {job_id}", hint="orch status lists them")
    return found


def trained_config(engine: Engine, job_id: int) -> JobConfig:
    """Return the config of a training job, with the precision that its subject was read in.

    Raises:
        NotFound: it does not exist, or is an evaluation.
    """
    config = configs(engine, [job_id])[job_id]
    with reading(engine) as session:
        return config.settled(dtype_of(session, job_id))


def stored_sweep(engine: Engine, name: str) -> Sweep:
    """Return a sweep as it was last enqueued, without its configs.

    Raises:
        NotFound: there is none of that name.
    """
    with reading(engine) as session:
        row = session.get_one(m.SweepRow, sweep_ids(session, [name])[0])
        limits = Limits(row.max_parallel, row.run_cap, row.max_failures)
        plan = None if row.evaluation is None else parse_plan(json.loads(row.evaluation))
        return Sweep(row.name, (), labels=dict(row.labels), limits=limits, text=row.text, evaluation=plan)


def last_ended(engine: Engine, sweeps: Sequence[str]) -> float | None:
    """Return when the last training job of sweeps ended, by the database's clock; None where none has."""
    with reading(engine) as session:
        mine = (m.Job.sweep_id.in_(sweep_ids(session, sweeps)), m.Job.kind == "train")
        return session.scalar(select(func.max(m.Job.finished_at)).where(*mine))
