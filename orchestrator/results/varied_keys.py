"""The keys in which the configs of one sweep differ."""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from orchestrator.config.flat_keys import flatten, varied_keys
from orchestrator.database.models import Job

MOST = 1000
"""Of more jobs than these, what they differ in is not looked for: every config would be read."""
TOLD = {"sae.n_latents", "sae.k"}
"""Keys that every row of a job tells anyway."""


def differences(session: Session, sweeps: Mapping[int, int]) -> dict[int, dict[str, Any]]:
    """Return, by job, the dotted keys in which its config and another of the same sweep differ.

    `sweeps` has the sweep of each job that is looked at.
    """
    if len(sweeps) > MOST:
        return {}
    rows = session.execute(select(Job.id, Job.config).where(Job.id.in_(sweeps)))
    configs = {row.id: flatten(json.loads(row.config)) for row in rows}
    by_sweep: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for job_id, config in configs.items():
        by_sweep[sweeps[job_id]].append(config)
    varied = {sweep: set(varied_keys(found)) - TOLD for sweep, found in by_sweep.items()}
    return {
        job_id: {key: value for key, value in config.items() if key in varied[sweeps[job_id]]}
        for job_id, config in configs.items()
    }
