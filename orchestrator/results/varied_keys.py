"""The keys in which the configs of one sweep differ."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from orchestrator.config.flat_keys import flatten_stored, varied_keys
from orchestrator.database.models import Job

MOST = 10_000
"""Of more jobs than these, what they differ in is not looked for: every config would be read."""
TOLD = {"sae.n_latents", "sae.k"}
"""Keys that every row of a job tells anyway."""
_FIRST = 1000
"""Jobs of a sweep that one of its own is set apart from."""
_IDS_PER_QUERY = 10_000


def differences(session: Session, sweeps: Mapping[int, int]) -> dict[int, dict[str, Any]]:
    """Return, by job, the dotted keys in which its config and another of the same sweep differ.

    `sweeps` has the sweep of each job that is looked at. Where those of one sweep do not differ, as one job alone, the
    keys are those in which they and the sweep's first thousand jobs do.
    """
    if len(sweeps) > MOST:
        return {}
    configs = flat_configs(session, list(sweeps))
    by_sweep: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for job_id, config in configs.items():
        by_sweep[sweeps[job_id]].append(config)
    varied = {sweep: set(varied_keys(found)) for sweep, found in by_sweep.items()}
    for sweep, found in by_sweep.items():
        if not varied[sweep]:
            first = select(Job.config).where(Job.sweep_id == sweep, Job.kind == "train").order_by(Job.id).limit(_FIRST)
            others = map(flatten_stored, session.scalars(first))
            varied[sweep] = set(varied_keys([*found[:1], *others]))
    return {
        job_id: {key: value for key, value in config.items() if key in varied[sweeps[job_id]] - TOLD}
        for job_id, config in configs.items()
    }


def flat_configs(session: Session, job_ids: list[int]) -> dict[int, dict[str, Any]]:
    """Return the config of each job under dotted keys."""
    return dict(_flat(session, job_ids))


def _flat(session: Session, job_ids: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    for start in range(0, len(job_ids), _IDS_PER_QUERY):
        part = job_ids[start : start + _IDS_PER_QUERY]
        for row in session.execute(select(Job.id, Job.config).where(Job.id.in_(part))):
            yield row.id, flatten_stored(row.config)
