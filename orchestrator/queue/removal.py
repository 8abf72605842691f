"""Take jobs out of sight: hidden ones come back when asked for, deleted ones never. Files go with `orch gc`."""

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Engine, delete, insert, select, update
from sqlalchemy.orm import Session

from orchestrator import lenses, saes
from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import (
    EVALUATION,
    ConvergenceRow,
    Event,
    Job,
    LensPointRow,
    LensRow,
    MeasuredFamily,
    ResultRow,
    SaeRow,
    ScoreRow,
)
from orchestrator.errors import NotFound, StateError
from orchestrator.job_states import TERMINAL, State
from orchestrator.queue.types import Change


def hide_jobs(engine: Engine, job_ids: Sequence[int], *, hidden: bool = True) -> list[Change]:
    """Take ended jobs out of every list, count, law and report; with `hidden` off put them back.

    Raises:
        StateError: the only job named has not ended, or is deleted.
        NotFound: a job that does not exist.
    """
    return [_hide(engine, job_id, hidden=hidden, alone=len(job_ids) == 1) for job_id in dict.fromkeys(job_ids)]


def delete_jobs(engine: Engine, job_ids: Sequence[int]) -> list[Change]:
    """Delete jobs that do not run, for good: their results go at once, their files with `orch gc`.

    The evaluations and scores of their SAEs, and their lenses, go with them. The row stays, without a place in its
    sweep: a number is never given twice, and the config may be enqueued again.

    Raises:
        StateError: the only job named runs, its SAE is being evaluated, or another job needs its lens.
        NotFound: a job that does not exist.
    """
    return [_delete(engine, job_id, alone=len(job_ids) == 1) for job_id in dict.fromkeys(job_ids)]


def remove_sae(engine: Engine, sae_id: int) -> None:
    """Take the row of an SAE that was brought in out of the table, with its scores; its files are the caller's.

    Its evaluation jobs are deleted as `delete_jobs` deletes.

    Raises:
        NotFound: there is none of that number.
        StateError: a job trained it, or it is being evaluated.
    """
    with transaction(engine) as session:
        saes.check_imported(session, sae_id)
        refused = _drop_evaluations(session, sae_id)
        if refused:
            raise StateError(f"cannot remove sae:{sae_id}: it {refused}", hint="orch status shows what runs")
        # A later SAE may get the number.
        session.execute(update(Job).where(Job.sae_id == sae_id, EVALUATION).values(sae_id=None))
        saes.remove(session, sae_id)


def _drop_evaluations(session: Session, sae_id: int) -> str:
    """Delete the scores of an SAE and its evaluation jobs; return why that cannot be, empty where it was done."""
    query = (
        select(Job.id, Job.state, Job.hidden).where(Job.sae_id == sae_id, EVALUATION).order_by(Job.id).with_for_update()
    )
    jobs = session.execute(query).all()
    for job in jobs:
        if job.state == "running":
            return f"is being evaluated: cancel job {job.id} first"
    for job in jobs:
        if job.hidden != "deleted":
            _drop(session, job, None)
    session.execute(delete(ScoreRow).where(ScoreRow.sae_id == sae_id))
    return ""


def _drop(session: Session, job: Any, outcome: str | None) -> None:
    """Delete what a job that does not run came to; its row stays, as deleted."""
    for table in (ConvergenceRow, ResultRow, ScoreRow, MeasuredFamily, LensPointRow, LensRow):
        session.execute(delete(table).where(table.job_id == job.id))
    gone = {"hidden": "deleted", "state": "cancelled", "desired": "run", "reason": "deleted by hand"}
    values = gone | ({} if job.state in TERMINAL else {"finished_at": db_now()})
    session.execute(update(Job).where(Job.id == job.id).values(**values))
    _log(session, job.id, "deleted", {"was": job.state, "outcome": outcome})


def _hide(engine: Engine, job_id: int, *, hidden: bool, alone: bool) -> Change:
    with transaction(engine) as session:
        job = _locked(session, job_id)
        refused = "is deleted" if job.hidden == "deleted" else "" if job.state in TERMINAL else f"is {job.state}"
        if refused:
            return _refuse(job, "hide", refused, alone=alone)
        word = "hidden" if hidden else None
        if job.hidden != word:
            session.execute(update(Job).where(Job.id == job_id).values(hidden=word))
            _log(session, job_id, "hidden" if hidden else "shown", None)
        return Change(job_id, cast(State, job.state), "hidden" if hidden else "shown again")


def _delete(engine: Engine, job_id: int, *, alone: bool) -> Change:
    with transaction(engine) as session:
        job = _locked(session, job_id)
        if job.state == "running":
            return _refuse(job, "delete", "is running: cancel it first", alone=alone)
        if job.hidden != "deleted":
            outcome = session.scalar(select(ResultRow.outcome).where(ResultRow.job_id == job_id))
            sae_id = session.scalar(select(SaeRow.id).where(SaeRow.job_id == job_id))
            refused = _uses_of_its_lens(session, job_id)
            if not refused and sae_id is not None:
                refused = _drop_evaluations(session, sae_id)
            if refused:
                return _refuse(job, "delete", refused, alone=alone)
            _drop(session, job, outcome)
        return Change(job_id, "cancelled", "deleted")


def _uses_of_its_lens(session: Session, job_id: int) -> str:
    """Say which job needs the lens that a job has trained; empty where none does."""
    sha256 = session.scalar(select(LensRow.sha256).where(LensRow.job_id == job_id))
    jobs = lenses.users(session, sha256) if sha256 else []
    return f"has trained the lens of job {jobs[0]}: delete that first" if jobs else ""


def _locked(session: Session, job_id: int) -> Any:
    job = session.execute(select(Job.id, Job.state, Job.hidden).where(Job.id == job_id).with_for_update()).one_or_none()
    if job is None:
        raise NotFound(f"there is no job {job_id}", hint="orch status lists them")
    return job


def _refuse(job: Any, verb: str, why: str, *, alone: bool) -> Change:
    if alone:
        raise StateError(f"cannot {verb} job {job.id}: it {why}", hint=f"orch show {job.id}")
    return Change(job.id, job.state, why)


def _log(session: Session, job_id: int, kind: str, data: dict[str, Any] | None) -> None:
    session.execute(insert(Event).values(job_id=job_id, at=db_now(), kind=kind, data=data))
