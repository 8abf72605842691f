"""Enqueue a sweep: one transaction, all or nothing; configs that it holds already are skipped and counted."""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, func, insert, literal, select, update
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import LIVE, Event, Job, SweepRow
from orchestrator.errors import ConfigError
from orchestrator.queue.fencing import clock, dialect_insert
from orchestrator.queue.types import Enqueued

if TYPE_CHECKING:
    from orchestrator.config.job import JobConfig
    from orchestrator.sweep.sweep import Sweep


def enqueue(engine: Engine, sweep: "Sweep", *, allow_duplicate: bool = False, priority: int | None = None) -> Enqueued:
    """Put a sweep's configs into the queue; to a sweep of that name only what is new is added.

    `priority`: of the new jobs, by default the sweep's.

    Raises:
        ConfigError: the sweep would hold more jobs than its run_cap.
        StorageError: the database did not answer; nothing was added.
    """
    ids = [config.config_id for config in sweep.configs]
    with transaction(engine) as session:
        sweep_id = _upsert_sweep(session, sweep)
        new = _new_positions(session, sweep_id, ids, allow_duplicate=allow_duplicate)
        _respect_cap(session, sweep_id, sweep, len(new))
        rows = [_row(sweep.configs[at]) | {"config_id": ids[at], "replica": replica} for at, replica in new.items()]
        order = sweep.priority if priority is None else priority
        placed = _insert(session, rows, sweep_id=sweep_id, priority=order)
        counts = {"added": len(new), "skipped": len(ids) - len(new)}
        session.execute(insert(Event).values(sweep_id=sweep_id, at=db_now(), kind="sweep_enqueued", data=counts))
    return Enqueued(sweep_id, tuple(placed[ids[at], new[at]] if at in new else None for at in range(len(ids))))


def _row(config: "JobConfig") -> dict[str, Any]:
    lr = config.optimizer.lr
    return {
        "config": config.canonical_json(),
        "n_latents": config.sae.n_latents,
        "k": config.sae.k,
        "max_tokens": config.training.max_tokens,
        "seed": config.training.seed,
        "lr": None if lr == "auto" else lr,
        "stream_key": config.stream_key,
    }


def _insert(
    session: Session, rows: list[dict[str, Any]], *, sweep_id: int, priority: int
) -> dict[tuple[str, int], int]:
    """Insert jobs and their first event; return the ids by config id and replica."""
    if not rows:
        return {}
    mine = Job.sweep_id == sweep_id
    last = session.scalar(select(func.max(Job.id)).where(mine)) or 0
    now = clock(session)
    same = {
        "sweep_id": sweep_id,
        "priority": priority,
        "state": "queued",
        "desired": "run",
        "created_at": now,
        "not_before": 0.0,
    }
    same |= dict.fromkeys(("attempt", "failures", "preemptions", "lost_in_row"), 0)
    session.execute(insert(Job), [row | same for row in rows])
    fresh = select(Job.id, literal(now), literal("enqueued")).where(mine, Job.id > last)
    session.execute(insert(Event).from_select(["job_id", "at", "kind"], fresh))
    added = select(Job.config_id, Job.replica, Job.id).where(mine, Job.id > last)
    return {(row.config_id, row.replica): row.id for row in session.execute(added)}


def _upsert_sweep(session: Session, sweep: "Sweep") -> int:
    values = {
        "text": sweep.text,
        "labels": dict(sweep.labels),
        "max_parallel": sweep.limits.max_parallel,
        "run_cap": sweep.limits.run_cap,
        "max_failures": sweep.limits.max_failures,
    }
    make = dialect_insert(session, SweepRow).on_conflict_do_nothing(index_elements=["name"])
    session.execute(make.values(name=sweep.name, paused=False, created_at=clock(session), **values))
    # The row's lock orders two enqueues of one sweep, so that the second sees what the first added.
    fresh = update(SweepRow).where(SweepRow.name == sweep.name).values(**values).returning(SweepRow.id)
    return int(session.execute(fresh).scalar_one())


def _new_positions(session: Session, sweep_id: int, ids: list[str], *, allow_duplicate: bool) -> dict[int, int]:
    """Return the replica number of each position that is to be added."""
    query = select(Job.config_id, func.max(Job.replica)).where(Job.sweep_id == sweep_id).group_by(Job.config_id)
    live = set(session.scalars(query.where(LIVE)))
    if not allow_duplicate:
        first = {id_: at for at, id_ in reversed(list(enumerate(ids)))}
        return {at: 0 for at, id_ in enumerate(ids) if id_ not in live and first[id_] == at}
    ever = defaultdict(lambda: -1, {row[0]: row[1] for row in session.execute(query)})
    new = {}
    for at, id_ in enumerate(ids):
        ever[id_] += 1
        new[at] = ever[id_]
    return new


def _respect_cap(session: Session, sweep_id: int, sweep: "Sweep", adding: int) -> None:
    cap = sweep.limits.run_cap
    there = (Job.sweep_id == sweep_id, Job.hidden.is_distinct_from("deleted"))
    held = session.scalar(select(func.count()).select_from(Job).where(*there)) or 0
    if cap is not None and adding and held + adding > cap:
        raise ConfigError(
            f"sweep {sweep.name!r}: {held} jobs and {adding} new ones are more than run_cap = {cap}",
            hint="Raise limits.run_cap in the sweep file, or give the new jobs a sweep of their own.",
        )
