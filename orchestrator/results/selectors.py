"""From what a person types to job ids."""

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from orchestrator import saes
from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.errors import NotFound
from orchestrator.saes import SaeEntry
from orchestrator.units import is_number, row_id

_SAE, _SWEEP = "sae:", "sweep:"


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


def no_training_jobs(session: Session, sweep: str) -> NotFound:
    """Return why a sweep shows no job that trains an SAE, and where to look instead."""
    jobs = select(m.Job.kind, m.Job.hidden).distinct().join(m.SweepRow).where(m.SweepRow.name == sweep)
    found = session.execute(jobs).all()
    shown = {job.kind for job in found if job.hidden is None}
    if told := _without_training(sweep, shown):
        return told
    if any(job.hidden == "hidden" for job in found):
        return NotFound(f"sweep {sweep!r} has no SAE: its jobs are hidden", hint=f"orch hide {sweep} --undo")
    return NotFound(f"sweep {sweep!r} has no SAE: there is no job in it", hint="orch enqueue FILE adds some.")


def left_out(engine: Engine, sweeps: Sequence[str]) -> list[NotFound]:
    """Return why some of several sweeps show no job that trains an SAE, one for each that shows none; of all, nothing.

    Raises:
        NotFound: one of them is no sweep; the message names what is near.
    """
    shown = select(m.SweepRow.name).join(m.Job).where(m.Job.kind == "train", m.Job.hidden.is_(None)).distinct()
    with reading(engine) as session:
        told = set(session.scalars(shown.where(m.SweepRow.id.in_(sweep_ids(session, sweeps)))))
        return [no_training_jobs(session, name) for name in dict.fromkeys(sweeps) if told and name not in told]


def find_saes(engine: Engine, selectors: Sequence[str]) -> list[SaeEntry]:
    """Return the SAEs of selectors, each once, in the order asked.

    A selector is a job's number, `sae:` with a number or a name, or a sweep's name, also as `sweep:NAME`.

    Raises:
        NotFound: one of them is none of these, or its jobs have no SAE yet; the message names what is near.
    """
    found: dict[int, SaeEntry] = {}
    for selector in map(str.strip, selectors):
        is_named = selector.startswith(_SAE)
        several = [saes.named(engine, selector.removeprefix(_SAE))] if is_named else _saes_of_jobs(engine, selector)
        found |= {entry.id: entry for entry in several}
    return list(found.values())


def is_path(selector: str) -> bool:
    """Say whether a selector names a file or folder, not a row of the table: ./folder, ../file, /path, ~/path, a/b."""
    return selector.startswith((".", "~")) or "/" in selector


def _saes_of_jobs(engine: Engine, selector: str) -> list[SaeEntry]:
    if is_path(selector):
        raise NotFound(f"{selector} is a file or folder, not an SAE of the table", hint=f"orch sae import {selector}")
    name = selector.removeprefix(_SWEEP)
    try:
        several = saes.of_jobs(engine, find(engine, [name]))
    except NotFound as error:
        with reading(engine) as session:
            is_sae = session.scalar(select(m.SaeRow.id).where(m.SaeRow.name == name)) is not None
        if is_sae:
            raise NotFound(error.message, hint=f"Is the SAE meant? Write sae:{name}") from None
        if Path(selector).exists():
            raise NotFound(error.message, hint=f"Is the folder meant? Write ./{selector}") from None
        raise
    if not several:
        raise _without_sae(engine, name)
    return several


def _without_sae(engine: Engine, name: str) -> NotFound:
    """Return why a job, or a sweep, has no SAE, and where to look instead."""
    with reading(engine) as session:
        columns = select(m.Job.id, m.Job.kind, m.Job.state, m.Job.sae_id).join(m.SweepRow)
        mine = m.Job.id == row_id(name) if is_number(name) else m.SweepRow.name == name
        jobs = session.execute(columns.where(mine)).all()
    if not is_number(name):
        missing = f"sweep {name!r} has no SAE: none of its jobs has finished with one"
        return _without_training(name, {job.kind for job in jobs}) or NotFound(missing, hint=f"orch status {name}")
    (job,) = jobs
    if job.kind == "evaluate":
        return NotFound(f"job {name} is an evaluation, of sae:{job.sae_id}", hint=f"orch results sae:{job.sae_id}")
    if job.kind == "lens":
        return NotFound(f"job {name} has no SAE: it trains a tuned lens", hint=f"orch lens show {name}")
    said = "it diverged" if job.state == "succeeded" else f"it is {job.state}"
    return NotFound(f"job {name} has no SAE: {said}", hint=f"orch explain {name}")


def _without_training(sweep: str, kinds: Collection[str]) -> NotFound | None:
    """Return what the jobs of a sweep do, by their kinds, and where it is shown; None: some train SAEs, or none is."""
    if not kinds or "train" in kinds:
        return None
    what = f"sweep {sweep!r} has no SAE"
    if "evaluate" in kinds:
        return NotFound(f"{what} of its own: its jobs evaluate some", hint=f"orch status {sweep}")
    return NotFound(f"{what}: its jobs train tuned lenses", hint="orch lens list")


def _select(session: Session, selector: str) -> list[int]:
    if (number := row_id(selector)) is not None:
        job_id = session.scalar(select(m.Job.id).where(m.Job.id == number))
        if job_id is not None:
            return [job_id]
    sweep_id = session.scalar(select(m.SweepRow.id).where(m.SweepRow.name == selector))
    if sweep_id is None:
        raise _not_found(session, selector)
    shown = (m.Job.sweep_id == sweep_id, m.Job.hidden.is_(None))
    return list(session.scalars(select(m.Job.id).where(*shown).order_by(m.Job.id)))


def _not_found(session: Session, selector: str) -> NotFound:
    if is_number(selector):
        last = session.scalar(select(m.Job.id).order_by(m.Job.id.desc()).limit(1))
        there = f"job ids go up to {last}" if last else "there are no jobs yet: orch enqueue SWEEP_FILE"
        return NotFound(f"there is no job {selector}; {there}", hint="orch status lists them")
    return _no_sweep(session, selector)


def _no_sweep(session: Session, selector: str) -> NotFound:
    names = session.scalars(select(m.SweepRow.name)).all()
    near = get_close_matches(selector, names, n=3)
    guess = f"; did you mean {', '.join(repr(name) for name in near)}?" if near else ""
    return NotFound(f"there is no sweep {selector!r}{guess}", hint="orch status lists sweeps and jobs")
