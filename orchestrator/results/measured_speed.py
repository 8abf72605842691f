"""How long jobs will take on a host, from stored jobs that are alike and ran there; nothing where none did."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Engine, select

from orchestrator.database import models as m
from orchestrator.database.engine import reading

if TYPE_CHECKING:
    from orchestrator.config.job import JobConfig

_NEWEST = 500
"""Results that are looked through."""
_MOST_APART = 4.0
"""A size more than so many times smaller or larger tells nothing."""
_ALIKE = {
    "data": ("context_length", "activations"), "sae": ("activation", "k"), "training": ("batch_tokens", "encode_dtype"),
}  # fmt: skip


class MeasuredSpeed(NamedTuple):
    """What jobs of one kind and size took."""

    seconds_per_token: float
    """Of a trainer's time: jobs that shared one had each its part of it."""
    jobs: tuple[int, ...]
    n_latents: int


def expected_seconds(
    engine: Engine, configs: "Sequence[JobConfig]", *, host: str, d_models: Sequence[int | None]
) -> list[tuple[float, MeasuredSpeed] | None]:
    """Return how long each job takes to the end of its budget on a host, and by what was measured; None without.

    Alike are jobs of one subject, place, length of context, activation, k and batch. Of these the nearest size counts,
    by the ratio of the sizes where it is another: the steps of large SAEs take as long as they are large.
    """
    known = _measured(engine, host)
    return [
        _expected(config, known.get(_kind(json.loads(config.canonical_json())), {}), d_model)
        for config, d_model in zip(configs, d_models, strict=True)
    ]


def _expected(
    config: "JobConfig", sizes: Mapping[int, MeasuredSpeed], d_model: int | None
) -> tuple[float, MeasuredSpeed] | None:
    n_latents = config.sae.n_latents or (None if d_model is None else config.sae.latents(d_model))
    if n_latents is None or not sizes:
        return None
    near = min(sizes, key=lambda size: abs(math.log(size / n_latents)))
    ratio = n_latents / near
    if max(ratio, 1 / ratio) > _MOST_APART:
        return None
    found = sizes[near]
    return config.training.max_tokens * found.seconds_per_token * max(1.0, ratio), found


def _measured(engine: Engine, host: str) -> dict[str, dict[int, MeasuredSpeed]]:
    """Return what results of a host took, by kind and size."""
    job, result, attempt = m.Job, m.ResultRow, m.Attempt
    query = (
        select(job.id, job.config, job.n_latents, result.wall_seconds, result.tokens_seen)
        .join(result, result.job_id == job.id)
        .join(attempt, (attempt.job_id == job.id) & (attempt.attempt == job.attempt))
        .where(attempt.host == host, result.wall_seconds > 0, result.tokens_seen > 0, job.n_latents.is_not(None))
        .order_by(job.id.desc())
        .limit(_NEWEST)
    )
    found: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    with reading(engine) as session:
        for row in session.execute(query):
            place = found[_kind(json.loads(row.config))][row.n_latents]
            place.append((row.id, row.wall_seconds / row.tokens_seen))
    return {
        kind: {
            size: MeasuredSpeed(median(one for _, one in timed), tuple(sorted(job for job, _ in timed)), size)
            for size, timed in sizes.items()
        }
        for kind, sizes in found.items()
    }


def _kind(config: Mapping[str, Any]) -> str:
    alike = {part: [config[part][name] for name in names] for part, names in _ALIKE.items()}
    return json.dumps([config["subject"], alike], sort_keys=True)
