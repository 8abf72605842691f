"""A lens job comes in: its job and the row of its lens, in one transaction."""

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Engine, func, insert, select
from sqlalchemy.orm import Session

from orchestrator import lenses
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import LIVE, Event, Job, SweepRow
from orchestrator.queue.fencing import clock, dialect_insert
from orchestrator.queue.workers import refuse_older

if TYPE_CHECKING:
    from orchestrator.config.lens.training import LensConfig

OF_LENSES = "lenses"
"""The sweep of all lens jobs; made when the first one is asked for."""


class LensAsked(NamedTuple):
    """What became of a request to train a lens."""

    job_id: int | None
    """Its job; None: nothing was to be stored."""
    is_new: bool
    """Whether the job was not there already."""


def train_lens(
    engine: Engine, config: "LensConfig", *, name: str | None = None, priority: int = 0, again: bool = False,
    dry_run: bool = False,
) -> LensAsked:  # fmt: skip
    """Queue the training of a lens; the same config is not queued twice, unless `again` asks for a replica.

    A lens that is there and has no name is given `name`. With `dry_run` nothing is stored.

    Raises:
        ConfigError, StateError: the name cannot be used; or a worker of an earlier version lives.
        StorageError: the database did not answer.
    """
    if name is not None and dry_run:
        lenses.check_name(engine, name)
    with reading(engine) if dry_run else transaction(engine) as session:
        there = _there(session, config)
        if dry_run or (there is not None and not again):
            if there is not None and name is not None and not dry_run:
                lenses.name_unnamed(session, there, name)
            return LensAsked(there, there is None)
        refuse_older(session, "lens")
        values = _values(config) | {"priority": priority, "sweep_id": _sweep(session), "replica": 0}
        if again:
            same = (Job.sweep_id == values["sweep_id"], Job.config_id == config.config_id)
            last = session.scalar(select(func.max(Job.replica)).where(*same))
            values["replica"] = 0 if last is None else last + 1
        job_id = session.scalar(_insertion(session, values))
        if job_id is None:  # another transaction has just queued it
            return LensAsked(_there(session, config), False)
        subject = config.subject
        facts = {"model": subject.model, "revision": subject.revision, "dtype": subject.dtype}
        lenses.reserve(session, job_id, name=name, source=f"job {job_id}", **facts)
        session.execute(insert(Event).values(job_id=job_id, at=db_now(), kind="enqueued"))
        return LensAsked(job_id, True)


def _there(session: Session, config: "LensConfig") -> int | None:
    """Return the job of a config that is queued, runs, waits or has succeeded."""
    query = select(Job.id).join(SweepRow, SweepRow.id == Job.sweep_id)
    mine = (SweepRow.name == OF_LENSES, Job.config_id == config.config_id, Job.kind == "lens")
    live = Job.state.not_in(("failed", "cancelled"))
    return session.scalar(query.where(*mine, live).order_by(Job.replica).limit(1))


def _sweep(session: Session) -> int:
    make = dialect_insert(session, SweepRow).on_conflict_do_nothing(index_elements=["name"])
    values = {"name": OF_LENSES, "text": "", "labels": {}, "max_failures": 3, "paused": False}
    session.execute(make.values(**values, created_at=clock(session)))
    return int(session.execute(select(SweepRow.id).where(SweepRow.name == OF_LENSES)).scalar_one())


def _insertion(session: Session, values: dict[str, Any]) -> Any:
    make = dialect_insert(session, Job).values(**values)
    place = ["sweep_id", "config_id", "replica"]
    return make.on_conflict_do_nothing(index_elements=place, index_where=LIVE).returning(Job.id)


def _values(config: "LensConfig") -> dict[str, Any]:
    counts = dict.fromkeys(("attempt", "failures", "preemptions", "lost_in_row"), 0)
    return counts | {
        "kind": "lens",
        "config_id": config.config_id,
        "config": config.canonical_json(),
        "k": 0,
        "max_tokens": config.training.max_tokens,
        "seed": config.data.seed,
        "lr": config.optimizer.lr,
        "state": "queued",
        "desired": "run",
        "not_before": 0.0,
        "created_at": db_now(),
    }
