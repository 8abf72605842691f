"""The rows of the table of SAEs, read back."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, or_, select
from sqlalchemy.orm import Session

from orchestrator.config.sae_facts import SaeFacts
from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.errors import NotFound
from orchestrator.saes.job_saes import record_missing
from orchestrator.units import row_id


@dataclass(frozen=True, slots=True)
class SaeEntry:
    """One SAE, trained here or brought in."""

    id: int
    name: str | None
    """None: its job's number names it."""
    job_id: int | None
    attempt: int | None
    """Of the job, whose result it is."""
    sweep: str | None
    format: str
    """Of the files it came in."""
    source: str
    sha256: str | None
    """Of the weights as they came; None: of a job."""
    uri: str
    facts: SaeFacts
    fvu: float | None
    """Measured here, of the vectors as the SAE normalises them."""
    fvu_raw: float | None
    """Measured here, of the subject's own activations."""
    l0: float | None
    measured_tokens: int | None
    measured_on: str | None
    state: str
    """unverified, verified or refused."""
    note: str | None
    created_at: float

    @property
    def label(self) -> str:
        """Return the shortest selector that means it."""
        return str(self.job_id) if self.job_id is not None else f"sae:{self.name or self.id}"

    def flat(self) -> dict[str, Any]:
        """Return all of it as one level of names, its facts among them."""
        own = {name: getattr(self, name) for name in type(self).__slots__ if name != "facts"}
        return {"selector": self.label, **own, **self.facts.as_json()}

    @classmethod
    def flat_types(cls) -> dict[str, Any]:
        """Return the types of what `flat` returns, by name."""
        own = {one.name: one.type for one in fields(cls) if one.name != "facts"}
        return {"selector": str, **own, **{one.name: one.type for one in fields(SaeFacts)}}


_OWN = set(SaeEntry.__slots__) - {"facts", "sweep"}


def entries(engine: Engine) -> list[SaeEntry]:
    """Return every SAE, in their order; those of hidden and of deleted jobs are left out."""
    record_missing(engine)
    with reading(engine) as session:
        return _read(session, or_(m.SaeRow.job_id.is_(None), m.Job.hidden.is_(None)))


def of_jobs(engine: Engine, job_ids: Sequence[int]) -> list[SaeEntry]:
    """Return the SAEs of those of some jobs that have one, in their order."""
    record_missing(engine)
    with reading(engine) as session:
        return _read(session, m.SaeRow.job_id.in_(job_ids))


def named(engine: Engine, name: str) -> SaeEntry:
    """Return the SAE of a number or a name.

    Raises:
        NotFound: there is none; the message names what is near.
    """
    record_missing(engine)
    number = row_id(name)
    with reading(engine) as session:
        found = _read(session, m.SaeRow.id == number if number else m.SaeRow.name == name)
        if found:
            return found[0]
        names = session.scalars(select(m.SaeRow.name).where(m.SaeRow.name.is_not(None))).all()
    near = get_close_matches(name, [one for one in names if one], n=3)
    guess = f"; did you mean {', '.join(f'sae:{one}' for one in near)}?" if near else ""
    raise NotFound(f"there is no sae:{name}{guess}", hint="orch sae list")


def read(session: Session, sae_ids: Sequence[int]) -> list[SaeEntry]:
    """Return those of some SAEs that there are, in their order, within a transaction."""
    return _read(session, m.SaeRow.id.in_(sae_ids))


def _read(session: Session, wanted: ColumnElement[bool]) -> list[SaeEntry]:
    """Return SAEs in their order: those of jobs by job, whichever ended first, then those brought in by number."""
    more = m.SweepRow.name.label("sweep_name"), m.Job.config.label("job_config")
    query = select(m.SaeRow.__table__, *more).order_by(m.SaeRow.job_id.is_(None), m.SaeRow.job_id, m.SaeRow.id)
    query = query.outerjoin(m.Job, m.Job.id == m.SaeRow.job_id).outerjoin(m.SweepRow, m.SweepRow.id == m.Job.sweep_id)
    return [_entry(row) for row in session.execute(query.where(m.Job.hidden.is_distinct_from("deleted"), wanted))]


def _entry(row: Row[Any]) -> SaeEntry:
    values = row._asdict()
    own = {name: values[name] for name in _OWN}
    facts = SaeFacts.from_json(values | {"lens": _lens(row.job_config)})
    return SaeEntry(facts=facts, sweep=row.sweep_name, **own)


def _lens(config: str | None) -> str | None:
    """Return the lens that a job's config names; most name none, and are not read."""
    if config is None or '"lens":' not in config:
        return None
    found: str | None = json.loads(config)["sae"].get("lens")
    return found
