"""The rows that laws are fitted to: every job of some sweeps with its result, its counts and its curve."""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Engine, Row, Select, and_, func, select
from sqlalchemy.orm import Session

from orchestrator.config.synthetic import is_synthetic
from orchestrator.curves.point import Point, stored_point
from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.results.auto_values import lr_of, measured_share, window_of
from orchestrator.results.job_history import measured_points
from orchestrator.results.selectors import no_training_jobs, sweep_ids
from orchestrator.results.text_passes import trainable_of
from orchestrator.scaling.types import JobMeasurement

_Counts = dict[int, dict[float, Row[Any]]]
"""By job and epsilon: tokens, and what they are known to exceed."""

_ROWS_AT_ONCE = 10_000


class _Tables(NamedTuple):
    """What other tables hold, by job."""

    facts: dict[int, dict[str, Any]]
    counts: _Counts
    curves: dict[int, list[Point]]
    last: dict[int, Any]
    sites: dict[tuple[str, str], str]
    """Names of the hook points that attempts have reported, by what their configs ask for."""
    layers: dict[tuple[str, str], tuple[int, ...]]
    """Those that SAEs of several read, likewise."""


def measured(
    engine: Engine, sweeps: Sequence[str], *, curves: bool = True, layer: int | None = None, missing_ok: bool = False
) -> list[JobMeasurement]:
    """Return the jobs of sweeps by id; without `curves` their curves stay empty, which spares most of the reading.

    `layer`: those whose SAE reads it among several are as they are at it, curves with them (`one_layer.at_layer`).
    `missing_ok`: that no job of them trains an SAE, or all are hidden, is no error.

    Raises:
        NotFound: one of the names is no sweep; the message names what is near. Or there is no such job: it says why.
        StorageError: the database did not answer.
    """
    with reading(engine) as session:
        mine = and_(m.Job.sweep_id.in_(sweep_ids(session, sweeps)), m.Job.hidden.is_(None), m.Job.kind == "train")
        ids = select(m.Job.id).where(mine)
        rows = [(row, json.loads(row.config)) for row in session.execute(_query().where(mine))]
        if not rows and not missing_ok:
            raise no_training_jobs(session, sweeps[0])
        facts = _facts(session, ids)
        points = _curves(session, ids) if curves or layer is not None else {}
        told = {name: _told(rows, facts, name) for name in ("site", "layers")}
        layers = {asked: tuple(found) for asked, found in told["layers"].items()}
        known = _Tables(facts, _counts(session, ids), points, _last(session, ids), told["site"], layers)
    found = [_measured(row, config, known) for row, config in rows]
    if layer is None:
        return found
    from orchestrator.scaling.one_layer import at_layer  # loads what checks configs: `orch status` needs none

    return [at_layer(row, layer) for row in found]


def _query() -> Select[Any]:
    job, result = m.Job, m.ResultRow
    names = (
        "id",
        "config_id",
        "config",
        "state",
        "reason",
        "d_model",
        "n_latents",
        "k",
        "lr",
        "seed",
        "max_tokens",
        "asked_config",
    )
    results = ("outcome", "untrained_fvu", "l_inf", "l_inf_se", "wall_seconds")
    return (
        select(
            *(getattr(job, name) for name in names), *(getattr(result, name) for name in results),
            m.SweepRow.name.label("sweep"), result.tokens_seen.label("result_tokens"), m.Attempt.device,
        )
        .join(m.SweepRow, m.SweepRow.id == job.sweep_id)
        .outerjoin(result, result.job_id == job.id)
        .outerjoin(m.Attempt, (m.Attempt.job_id == job.id) & (m.Attempt.attempt == job.attempt))
        .order_by(job.id)
    )  # fmt: skip


def _facts(session: Session, ids: Select[Any]) -> dict[int, dict[str, Any]]:
    """Return the facts of the newest attempt that reported any."""
    reported = select(m.Attempt.job_id, m.Attempt.facts).where(m.Attempt.job_id.in_(ids)).order_by(m.Attempt.attempt)
    return {job_id: facts for job_id, facts in session.execute(reported) if facts}


def _told(
    rows: Sequence[tuple[Row[Any], dict[str, Any]]], facts: dict[int, dict[str, Any]], name: str
) -> dict[tuple[str, str], Any]:
    """Return what attempts have told of the place they read, by what their configs ask for."""
    found = ((_asked(config), facts.get(row.id, {}).get("subject", {}).get(name)) for row, config in rows)
    return {asked: value for asked, value in found if value}


def _asked(config: dict[str, Any]) -> tuple[str, str]:
    return _subject(config["subject"]), _hook(config["subject"])


def _counts(session: Session, ids: Select[Any]) -> _Counts:
    found: _Counts = defaultdict(dict)
    stored = m.ConvergenceRow.__table__
    for row in session.connection().execute(select(stored).where(stored.c.job_id.in_(ids))):
        found[row.job_id][row.epsilon] = row
    return found


def _curves(session: Session, ids: Select[Any]) -> dict[int, list[Point]]:
    columns = [getattr(m.CurvePoint, name) for name in Point._fields]
    query = select(m.CurvePoint.job_id, *columns).where(m.CurvePoint.job_id.in_(ids))
    found: dict[int, list[Point]] = defaultdict(list)
    # By the connection, and in parts: of 145,000 points the session's way to a row took a third of the time.
    read = session.connection().execute(query.order_by(m.CurvePoint.job_id, m.CurvePoint.tokens_seen))
    for part in read.partitions(_ROWS_AT_ONCE):
        for job_id, *values in part:
            found[job_id].append(stored_point(values))
    return found


def _last(session: Session, ids: Select[Any]) -> dict[int, Any]:
    """Return the last point of each curve."""
    newest = select(m.CurvePoint.job_id, func.max(m.CurvePoint.tokens_seen).label("tokens"))
    ends = newest.where(m.CurvePoint.job_id.in_(ids)).group_by(m.CurvePoint.job_id).subquery()
    at = (m.CurvePoint.job_id == ends.c.job_id) & (m.CurvePoint.tokens_seen == ends.c.tokens)
    point = m.CurvePoint
    query = select(point.job_id, point.tokens_seen, point.fvu, point.dead_share, point.l0, point.wall_seconds).join(
        ends, at
    )
    found: dict[int, Any] = {row.job_id: row for row in session.execute(query)}
    return found


def _measured(row: Row[Any], config: dict[str, Any], known: _Tables) -> JobMeasurement:
    facts = known.facts.get(row.id, {})
    subject, last, counts = facts.get("subject", {}), known.last.get(row.id), known.counts.get(row.id, {})
    tokens = row.result_tokens if row.result_tokens is not None else getattr(last, "tokens_seen", 0)
    hook = subject.get("site") or known.sites.get(_asked(config))
    window = window_of(config, row.d_model)
    dead_share = None if last is None else measured_share(last.dead_share, last.tokens_seen, window)
    return JobMeasurement(
        job_id=row.id, sweep=row.sweep, config_id=row.config_id, state=row.state, outcome=row.outcome,
        reason=row.reason, subject=_subject(config["subject"]), subject_size=subject.get("parameters_run"),
        hook=hook or _hook(config["subject"]), data=_data(config),
        activation=config["sae"]["activation"], d_model=row.d_model, n_latents=row.n_latents, k=row.k,
        lr=lr_of(row.lr, facts), lr_is_auto=config["optimizer"]["lr"] == "auto", seed=row.seed,
        batch_tokens=config["training"]["batch_tokens"], max_tokens=row.max_tokens, tokens_seen=tokens,
        fvu=_number(last, "fvu"), untrained_fvu=row.untrained_fvu, dead_share=dead_share,
        l_inf=row.l_inf, l_inf_se=row.l_inf_se, tokens_to_convergence={e: one.tokens for e, one in counts.items()},
        tokens_lower_bound={e: one.lower_bound for e, one in counts.items()},
        tokens_interval={e: (one.low, one.high) for e, one in counts.items() if one.low and one.high},
        wall_seconds=row.wall_seconds if row.wall_seconds is not None else getattr(last, "wall_seconds", None),
        device=facts.get("device", row.device), threads=facts.get("threads"),
        curve=tuple(measured_points(known.curves.get(row.id, ()), window)),
        l0=getattr(last, "l0", None), trainable_tokens=trainable_of(facts),
        layer=None if config["subject"]["hook"] else config["subject"]["layer"],
        layers=_layers(config["subject"], known.layers.get(_asked(config), ())),
        warmup_tokens=config["optimizer"]["warmup_tokens"], decay_tokens=config["optimizer"]["decay_tokens"],
        lens=config["sae"].get("lens") or "", stop_epsilon=config["stop"]["epsilon"],
        first_max_tokens=json.loads(row.asked_config)["training"]["max_tokens"] if row.asked_config else None,
    )  # fmt: skip


def _number(last: Any, name: str) -> float | None:
    """Return a value of the last point: nan where it was not finite, None where there is no point."""
    if last is None:
        return None
    value = getattr(last, name)
    return math.nan if value is None else float(value)


def _subject(config: dict[str, Any]) -> str:
    return str(config["model"]) + (f"@{config['revision']}" if config["revision"] else "")


def _hook(config: dict[str, Any]) -> str:
    if config["hook"]:
        return str(config["hook"])
    layers = config.get("layers")
    if layers is not None:
        return f"layers {layers if layers == 'all' else ', '.join(map(str, layers))}, {config['site']}"
    return f"layer {'auto' if config['layer'] is None else config['layer']}, {config['site']}"


def _layers(subject: dict[str, Any], told: tuple[int, ...]) -> tuple[int, ...]:
    """Return the layers of a config that has several: as it lists them, or what an attempt has told all to be."""
    asked = subject.get("layers")
    listed = told if asked == "all" else tuple(asked or ())
    return listed if len(listed) > 1 else ()


def _data(config: dict[str, Any]) -> str:
    """Return the text that is read; empty where vectors are drawn and none is."""
    if is_synthetic(config["subject"]["model"]):
        return ""
    data = config["data"]
    parts = (data["source"], data["name"], data["revision"], None if data["split"] == "train" else data["split"])
    return " ".join(str(part) for part in parts if part)
