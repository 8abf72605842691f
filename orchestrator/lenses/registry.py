"""Rows of lenses: reserved for a job, filled by its result, added for a lens that is brought in, removed."""

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, delete, insert, select, update
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Job, LensRow
from orchestrator.errors import ConfigError, NotFound, StateError
from orchestrator.job_states import FREED

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, kw_only=True)
class NewLens:
    """A lens that is brought in."""

    name: str
    source: str
    sha256: str
    uri: str
    model: str
    revision: str | None
    fingerprint: str
    dtype: str
    n_layers: int
    d_model: int
    conditions: list[float]


def add(engine: Engine, lens: NewLens) -> int:
    """Enter a lens that was brought in; return its number.

    Raises:
        ConfigError: it cannot be named so.
        StateError: there is one of that name.
    """
    with transaction(engine) as session:
        _take_name(session, lens.name)
        added = insert(LensRow).values(**vars(lens), created_at=db_now()).returning(LensRow.id)
        return int(session.execute(added).scalar_one())


def check_name(engine: Engine, name: str) -> None:
    """Refuse a name that a lens cannot have, or that one has.

    Raises:
        ConfigError, StateError: says which.
    """
    with reading(engine) as session:
        _refuse_taken(session, name)


def reserve(session: Session, job_id: int, *, name: str | None, **values: Any) -> None:
    """Enter the lens that a job is to train, in the transaction that queues it.

    Raises:
        ConfigError, StateError: the name cannot be used.
    """
    if name is not None:
        _take_name(session, name)
    session.execute(insert(LensRow).values(job_id=job_id, name=name, created_at=db_now(), **values))


def name_unnamed(session: Session, job_id: int, name: str) -> None:
    """Give a name to the lens of a job that has none; another name stays.

    Raises:
        ConfigError, StateError: the name cannot be used.
    """
    known = session.scalar(select(LensRow.name).where(LensRow.job_id == job_id))
    if known is None:
        _take_name(session, name)
        session.execute(update(LensRow).where(LensRow.job_id == job_id).values(name=name))


def fill(session: Session, job_id: int, **values: Any) -> None:
    """Store what the training of a lens found, or came to."""
    session.execute(update(LensRow).where(LensRow.job_id == job_id).values(**values))


def remove(engine: Engine, lens_id: int) -> None:
    """Take the row of a lens that was brought in out of the table; its folder goes with `orch gc`.

    Raises:
        NotFound: there is none of that number.
        StateError: a job trained it, or jobs use it.
    """
    with transaction(engine) as session:
        row = session.execute(select(LensRow.job_id, LensRow.sha256).where(LensRow.id == lens_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no lens of number {lens_id}", hint="orch lens list")
        if row.job_id is not None:
            raise StateError(f"the lens was trained by job {row.job_id}", hint=f"orch delete {row.job_id}")
        if row.sha256 and (jobs := users(session, row.sha256)):
            raise StateError(f"job {jobs[0]} trains in the space of that lens", hint=f"orch delete {jobs[0]} first")
        session.execute(delete(LensRow).where(LensRow.id == lens_id))


def users(session: Session, sha256: str) -> list[int]:
    """Return the jobs, not those deleted, whose configs name a lens by its content id."""
    named = Job.config.contains(sha256, autoescape=True)
    mine = (named, Job.hidden.is_distinct_from("deleted"))
    return list(session.scalars(select(Job.id).where(*mine).order_by(Job.id)))


def _take_name(session: Session, name: str) -> None:
    """Refuse a name that is taken; where a job failed, was cancelled or diverged it is free, and its row loses it."""
    _refuse_taken(session, name)
    session.execute(update(LensRow).where(LensRow.name == name).values(name=None))


def _refuse_taken(session: Session, name: str) -> None:
    if not _NAME.fullmatch(name) or name.isdigit():
        raise ConfigError(
            f"a lens cannot be named {name!r}", hint="Use letters, digits, dots, - and _; not a number alone."
        )
    query = select(LensRow.job_id, LensRow.outcome, Job.state).outerjoin(Job, Job.id == LensRow.job_id)
    row = session.execute(query.where(LensRow.name == name)).one_or_none()
    if row is not None and row.state not in FREED and row.outcome != "diverged":
        of = "it was brought in" if row.job_id is None else f"job {row.job_id} trains it, or has"
        raise StateError(f"there is a lens named {name!r} already: {of}", hint="Give another --name.")
