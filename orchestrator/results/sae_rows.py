"""SAEs as a person names them and sees them: those of jobs and those brought in."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Row, Select, or_, select
from sqlalchemy.orm import Session

from orchestrator.config.sae_facts import SaeFacts
from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.errors import NotFound
from orchestrator.results.rows import SaeEntry
from orchestrator.results.selectors import find, sweep_ids
from orchestrator.saes import record_missing

SAE, SWEEP = "sae:", "sweep:"
_OWN = set(SaeEntry.__slots__) - {"facts", "sweep"}


def saes(engine: Engine) -> list[SaeEntry]:
    """Return every SAE by number; those of hidden and of deleted jobs are left out."""
    record_missing(engine)
    with reading(engine) as session:
        return [_entry(row) for row in session.execute(_query().where(_is_shown()))]


def find_saes(engine: Engine, selectors: Sequence[str]) -> list[SaeEntry]:
    """Return the SAEs of selectors, each once, in the order asked.

    A selector is a job's number, `sae:` with a number or a name, or a sweep's name, also as `sweep:NAME`.

    Raises:
        NotFound: one of them is none of these, or its jobs have no SAE yet; the message names what is near.
    """
    record_missing(engine)
    found: dict[int, SaeEntry] = {}
    for selector in map(str.strip, selectors):
        with reading(engine) as session:
            if selector.startswith(SAE):
                entries = [_one(session, selector.removeprefix(SAE))]
            else:
                entries = _of_jobs(engine, session, selector)
        found |= {entry.id: entry for entry in entries}
    return list(found.values())


def _of_jobs(engine: Engine, session: Session, selector: str) -> list[SaeEntry]:
    if selector.startswith(SWEEP):
        name = selector.removeprefix(SWEEP)
        jobs = select(m.Job.id).where(m.Job.sweep_id.in_(sweep_ids(session, [name])), m.Job.hidden.is_(None))
        of_jobs = m.SaeRow.job_id.in_(jobs)
    elif not selector.isdigit() and Path(selector).exists():
        raise NotFound(f"{selector} is a file or folder, not an SAE of the table", hint=f"orch sae import {selector}")
    else:
        of_jobs = m.SaeRow.job_id.in_(find(engine, [selector]))
    entries = [_entry(row) for row in session.execute(_query().where(of_jobs))]
    if not entries:
        what = f"job {selector}" if selector.isdigit() else f"sweep {selector.removeprefix(SWEEP)!r}"
        raise NotFound(f"{what} has no SAE: none of its jobs has finished with one", hint="orch sae list")
    return entries


def _one(session: Session, name: str) -> SaeEntry:
    number = int(name) if name.isascii() and name.isdigit() else 0
    row = session.execute(_query().where(m.SaeRow.id == number if number else m.SaeRow.name == name)).one_or_none()
    if row is not None:
        return _entry(row)
    names = session.scalars(select(m.SaeRow.name).where(m.SaeRow.name.is_not(None))).all()
    near = get_close_matches(name, [one for one in names if one], n=3)
    guess = f"; did you mean {', '.join(f'sae:{one}' for one in near)}?" if near else ""
    raise NotFound(f"there is no sae:{name}{guess}", hint="orch sae list")


def _query() -> Select[Any]:
    query = select(m.SaeRow.__table__, m.SweepRow.name.label("sweep_name")).order_by(m.SaeRow.id)
    query = query.outerjoin(m.Job, m.Job.id == m.SaeRow.job_id)
    return query.outerjoin(m.SweepRow, m.SweepRow.id == m.Job.sweep_id).where(m.Job.hidden.is_distinct_from("deleted"))


def _is_shown() -> Any:
    return or_(m.SaeRow.job_id.is_(None), m.Job.hidden.is_(None))


def _entry(row: Row[Any]) -> SaeEntry:
    values = row._asdict()
    facts = SaeFacts.from_json(values)
    return SaeEntry(facts=facts, sweep=row.sweep_name, **{name: values[name] for name in _OWN})
