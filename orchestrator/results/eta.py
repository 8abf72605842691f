"""Where running jobs will stop, each by its own curve."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from orchestrator.curves.expected_stop import stop_tokens
from orchestrator.curves.resting import resting_points
from orchestrator.database import models as m


def expected_tokens(session: Session, job_ids: Sequence[int]) -> dict[int, int]:
    """Return tokens_seen at which each job is expected to stop; without those whose curve is too short to say."""
    if not job_ids:
        return {}
    point = m.CurvePoint
    columns = select(point.job_id, point.tokens_seen, point.fvu, point.sparsity_coef)
    curves: defaultdict[int, list[Any]] = defaultdict(list)
    for row in session.execute(columns.where(point.job_id.in_(job_ids)).order_by(point.job_id, point.tokens_seen)):
        curves[row.job_id].append(row)
    configs = session.execute(select(m.Job.id, m.Job.config).where(m.Job.id.in_(list(curves)))).all()
    found = {job_id: _stop(config, resting_points(curves[job_id])) for job_id, config in configs}
    return {job_id: tokens for job_id, tokens in found.items() if tokens is not None}


def _stop(text: str, curve: list[tuple[int, float]]) -> int | None:
    config = json.loads(text)
    training, stop, optimizer = config["training"], config["stop"], config["optimizer"]
    if stop["rule"] != "plateau" or optimizer["decay_tokens"]:
        return None
    curve = [(tokens, fvu) for tokens, fvu in curve if tokens >= optimizer["warmup_tokens"]]
    sizes = {name: training[name] for name in ("first_point_tokens", "batch_tokens", "max_tokens")}
    return stop_tokens(tuple(curve), epsilon=stop["epsilon"], **sizes)
