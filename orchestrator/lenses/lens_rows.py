"""The rows of the table of lenses, read back, and the curves of those that jobs train."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from sqlalchemy import ColumnElement, Engine, select
from sqlalchemy.orm import Session

from orchestrator.curves.lens_curve import LensPoint
from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.errors import NotFound
from orchestrator.units import row_id

_SHORTEST_ID = 8
"""Digits of a content id that may stand for all of it."""


@dataclass(frozen=True, slots=True)
class LensEntry:
    """One tuned lens."""

    id: int
    name: str | None
    """None: its job's number names it."""
    job_id: int | None
    attempt: int | None
    """Of the job, whose result it is."""
    source: str
    sha256: str | None
    """Its content id; None: it is not trained yet, or diverged."""
    uri: str | None
    """The folder it lies in."""
    model: str
    revision: str | None
    fingerprint: str | None
    """sha256 of the model's config and weights; None: no attempt has read them yet."""
    dtype: str
    n_layers: int | None
    d_model: int | None
    outcome: str | None
    """converged, max_tokens, not_learning or diverged, of one that a job has trained."""
    tokens_seen: int | None
    """Of one in training: `lens_progress.so_far` fills it, the KLs and what its attempt has found."""
    wall_seconds: float | None
    measured_on: str | None
    measured_tokens: int | None
    kl: float | None
    """Mean over all layers but the last, nats per token."""
    kls: list[float | None] | None
    """By layer."""
    logit_lens_kls: list[float] | None
    """The same without translators."""
    conditions: list[float] | None
    """Condition number of I + A by layer."""
    created_at: float
    state: str | None
    """Of its job; None: it was brought in."""
    max_tokens: int | None = None
    """The budget of its job."""

    @property
    def label(self) -> str:
        """Return the shortest selector that means it."""
        return self.name or str(self.job_id)


_OF_JOB = ("state", "max_tokens")
_OWN = [one.name for one in fields(LensEntry) if one.name not in _OF_JOB]


def entries(engine: Engine) -> list[LensEntry]:
    """Return every lens by number; those of hidden and of deleted jobs are left out."""
    with reading(engine) as session:
        return read(session, m.LensRow.job_id.is_(None) | m.Job.hidden.is_(None))


def of_jobs(engine: Engine, job_ids: Collection[int]) -> list[LensEntry]:
    """Return the lenses of some jobs, by number."""
    with reading(engine) as session:
        return read(session, m.LensRow.job_id.in_(job_ids))


def named(engine: Engine, selector: str) -> LensEntry:
    """Return the lens of a name, of its job's number, or of its content id or the first eight digits or more of it.

    A name goes before a number, and both before a content id.

    Raises:
        NotFound: there is none, or its content id begins like another's; the message names what is near.
    """
    number = row_id(selector) or 0
    with reading(engine) as session:
        if found := read(session, m.LensRow.name == selector) or read(session, m.LensRow.job_id == number):
            return found[0]
        if found := read(session, _has_id(selector)) if len(selector) >= _SHORTEST_ID else []:
            if len({one.sha256 for one in found}) > 1:
                labels = ", ".join(one.label for one in found)
                raise NotFound(f"{selector!r} begins the content id of several lenses: {labels}", hint="Give a name.")
            return found[0]
        names = [name for name in session.scalars(select(m.LensRow.name)) if name]
    near = get_close_matches(selector, names, n=3)
    guess = f"; did you mean {', '.join(near)}?" if near else ""
    raise NotFound(f"there is no lens {selector!r}{guess}", hint="orch lens list")


def found_by_attempt(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the facts that an attempt reports before its first step say of its lens, by the names of columns."""
    return {
        "fingerprint": facts["subject"]["sha256"],
        "n_layers": facts["subject"]["n_layers"],
        "d_model": facts["d_model"],
        "measured_on": facts["text"],
        "measured_tokens": facts["heldout_tokens"],
        "logit_lens_kls": facts["logit_lens_kls"],
    }


def _has_id(beginning: str) -> ColumnElement[bool]:
    return m.LensRow.sha256.startswith(beginning.lower(), autoescape=True)


def curve(engine: Engine, job_id: int) -> list[LensPoint]:
    """Return the points of a job that trains a lens, in order."""
    columns = [getattr(m.LensPointRow, one.name) for one in fields(LensPoint)]
    query = select(*columns).where(m.LensPointRow.job_id == job_id).order_by(m.LensPointRow.tokens_seen)
    with reading(engine) as session:
        return [LensPoint(*_numbers(row)) for row in session.execute(query)]


def read(session: Session, wanted: ColumnElement[bool]) -> list[LensEntry]:
    """Return the lenses that fit a condition on their rows, or on their jobs', within a transaction."""
    query = select(*(getattr(m.LensRow, name) for name in _OWN), *(getattr(m.Job, name) for name in _OF_JOB)).order_by(
        m.LensRow.id
    )
    query = query.outerjoin(m.Job, m.Job.id == m.LensRow.job_id)
    shown = m.Job.hidden.is_distinct_from("deleted")
    return [LensEntry(**row._mapping) for row in session.execute(query.where(shown, wanted))]


def _numbers(row: Sequence[Any]) -> list[Any]:
    return [float("nan") if value is None else value for value in row]
