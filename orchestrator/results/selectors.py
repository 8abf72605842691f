"""From what a person types to job ids."""

from collections.abc import Sequence
from difflib import get_close_matches

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.errors import NotFound

_MAX_ID = 2**31 - 1


def find(engine: Engine, selectors: Sequence[str]) -> list[int]:
    """Return the jobs of ids and sweep names, each once, in the order asked; of a sweep those that are not hidden.

    Raises:
        NotFound: one of them is neither; the message names what is near.
    """
    with reading(engine) as session:
        return list(dict.fromkeys(job_id for selector in selectors for job_id in _select(session, selector.strip())))


def hidden_of(engine: Engine, sweeps: Sequence[str]) -> list[int]:
    """Return the hidden jobs of sweeps, not those that are deleted.

    Raises:
        NotFound: one of them is no sweep; the message names what is near.
    """
    with reading(engine) as session:
        mine = (m.Job.sweep_id.in_(sweep_ids(session, sweeps)), m.Job.hidden == "hidden")
        return list(session.scalars(select(m.Job.id).where(*mine).order_by(m.Job.id)))


def existing(engine: Engine, sweep: str) -> set[str]:
    """Return the config ids a sweep holds, those of failed and cancelled jobs left out; empty without such a sweep."""
    held = select(m.Job.config_id).join(m.SweepRow, m.SweepRow.id == m.Job.sweep_id)
    with reading(engine) as session:
        return set(session.scalars(held.where(m.SweepRow.name == sweep, m.LIVE)))


def sweep_ids(session: Session, names: Sequence[str]) -> list[int]:
    """Return the ids of sweeps, each once.

    Raises:
        NotFound: one of them is no sweep; the message names what is near.
    """
    known = {row.name: row.id for row in session.execute(select(m.SweepRow.name, m.SweepRow.id))}
    for name in names:
        if name not in known:
            raise _no_sweep(session, name)
    return sorted({known[name] for name in names})


def _select(session: Session, selector: str) -> list[int]:
    if selector.isascii() and selector.isdigit() and int(selector) <= _MAX_ID:
        job_id = session.scalar(select(m.Job.id).where(m.Job.id == int(selector)))
        if job_id is not None:
            return [job_id]
    sweep_id = session.scalar(select(m.SweepRow.id).where(m.SweepRow.name == selector))
    if sweep_id is None:
        raise _not_found(session, selector)
    shown = (m.Job.sweep_id == sweep_id, m.Job.hidden.is_(None))
    return list(session.scalars(select(m.Job.id).where(*shown).order_by(m.Job.id)))


def _not_found(session: Session, selector: str) -> NotFound:
    if selector.isascii() and selector.isdigit():
        last = session.scalar(select(m.Job.id).order_by(m.Job.id.desc()).limit(1))
        there = f"job ids go up to {last}" if last else "there are no jobs yet: orch enqueue SWEEP_FILE"
        return NotFound(f"there is no job {selector}; {there}", hint="orch status lists them")
    return _no_sweep(session, selector)


def _no_sweep(session: Session, selector: str) -> NotFound:
    names = session.scalars(select(m.SweepRow.name)).all()
    near = get_close_matches(selector, names, n=3)
    guess = f"; did you mean {', '.join(repr(name) for name in near)}?" if near else ""
    return NotFound(f"there is no sweep {selector!r}{guess}", hint="orch status lists sweeps and jobs")
