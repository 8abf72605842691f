"""The keys in which the configs of one sweep differ."""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

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
    configs = {row.id: _flat(json.loads(row.config)) for row in rows}
    texts: dict[tuple[int, str], set[str]] = defaultdict(set)
    for job_id, config in configs.items():
        for key, value in config.items():
            texts[sweeps[job_id], key].add(value if isinstance(value, str) else json.dumps(value))
    varied = {at for at, found in texts.items() if len(found) > 1 and at[1] not in TOLD}
    return {
        job_id: {key: value for key, value in config.items() if (sweeps[job_id], key) in varied}
        for job_id, config in configs.items()
    }


def _flat(config: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"{part}.{key}": value for part, values in config.items() for key, value in values.items()}
