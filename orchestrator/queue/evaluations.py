"""While an evaluation job runs, and at its end: scores of one metric family after the other, each stored once, fenced.

A family is stored whole or not at all, so that an attempt that follows measures only what is missing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import Attempt, Job, LeaseRow, MeasuredFamily, ScoreRow
from orchestrator.job_states import State
from orchestrator.queue.fencing import (
    clock,
    close_attempt,
    dialect_insert,
    held_by,
    hold,
    landing,
    log_event,
    move,
    state_after,
    storable,
)
from orchestrator.queue.types import Lease

EVALUATED, NOT_MEASURED = "evaluated", "not_measured"
"""How the attempt of an evaluation ends: every family is measured, or some could not be."""
_FIELDS = ("metric", "variant", "value", "std_error", "low", "high", "n", "details")


def begin_evaluation(engine: Engine, lease: Lease, facts: Mapping[str, Any]) -> None:
    """Record what the process has found: the subject, the text, the versions.

    Raises:
        LeaseLost: this worker has been given up.
    """
    with transaction(engine) as session:
        hold(session, lease)
        mine = (Attempt.job_id == lease.job_id, Attempt.attempt == lease.attempt)
        session.execute(update(Attempt).where(*mine).values(facts=_storable(dict(facts))))
        session.execute(update(LeaseRow).where(held_by(lease)).values(progress_at=db_now()))
        log_event(session, "started", lease)


def record_scores(
    engine: Engine, lease: Lease, family: str, scores: Sequence[Mapping[str, Any]], *, wall_seconds: float,
    files_uri: str | None = None, tokens: int | None = None, measured_on: str | None = None,
) -> bool:  # fmt: skip
    """Store the scores of a metric family, and that it is measured; say whether they are new.

    A family that is measured already stays as it is. Each score is a mapping with `metric` and `value`, and, where
    there are, `variant`, `std_error`, `low`, `high`, `n` and `details`. `files_uri`: the folder of what is kept beside
    them; `tokens`, `measured_on`: how many tokens of which text.

    Raises:
        LeaseLost: this worker has been given up; nothing was stored.
    """
    with transaction(engine) as session:
        hold(session, lease)
        if _state(session, lease, family) == "measured":
            return False
        job = session.execute(select(Job.sae_id, Job.seed, Job.config).where(Job.id == lease.job_id)).one()
        own = {"job_id": lease.job_id, "sae_id": job.sae_id, "seed": job.seed, "family": family}
        own["sae_attempt"] = json.loads(job.config)["sae"]["attempt"]
        own["created_at"] = clock(session)
        rows = [own | _score(score) for score in scores]
        if rows:
            session.execute(insert(ScoreRow), rows)
        files = {"uri": files_uri, "tokens": tokens, "measured_on": measured_on}
        _set_family(session, lease, family, state="measured", error=None, wall_seconds=wall_seconds, **files)
        session.execute(update(LeaseRow).where(held_by(lease)).values(progress_at=db_now()))
        session.execute(update(Job).where(Job.id == lease.job_id, Job.lost_in_row > 0).values(lost_in_row=0))
        log_event(session, "measured", lease, family=family, scores=len(rows))
    return True


def record_failed_family(engine: Engine, lease: Lease, family: str, error: str) -> None:
    """Store why a metric family could not be measured; one that is measured already stays so.

    Raises:
        LeaseLost: this worker has been given up; nothing was stored.
    """
    with transaction(engine) as session:
        hold(session, lease)
        if _state(session, lease, family) == "measured":
            return
        nothing = dict.fromkeys(("wall_seconds", "uri", "tokens", "measured_on"))
        _set_family(session, lease, family, state="failed", error=storable(error), **nothing)
        log_event(session, "family_failed", lease, family=family, error=storable(error).partition("\n")[0])


def finish_evaluation(engine: Engine, lease: Lease, wall_seconds: float) -> State:
    """End an evaluation: succeeded where every family of its config is measured, else failed. Finishing twice is once.

    What failed is the reason, by family; it is not tried again by itself, and the scores of the others stay.

    Raises:
        LeaseLost: this worker has been given up; nothing was stored.
    """
    with transaction(engine) as session:
        missing = _missing(session, lease.job_id)
        outcome = NOT_MEASURED if missing else EVALUATED
        reason = "; ".join(f"{family}: {error}" for family, error in missing.items()) or None
        if close_attempt(session, lease, outcome=outcome, exit_code=0, error=reason) is None:
            return state_after(session, lease, EVALUATED, NOT_MEASURED)
        wanted, failures = session.execute(select(Job.desired, Job.failures).where(Job.id == lease.job_id)).one()
        state: State = landing(wanted, "failed") if missing else "succeeded"
        values = {"failures": failures + 1} if missing else {"lost_in_row": 0}
        move(session, lease, state, reason=reason, **values)
        log_event(session, state, lease, outcome=outcome, reason=reason, wall_seconds=wall_seconds)
        if wanted != "run" and state == "succeeded":
            log_event(session, f"{wanted}_too_late", lease)
    return state


def _missing(session: Session, job_id: int) -> dict[str, str]:
    """Return the families of a job's config that are not measured, each with the reason."""
    config = json.loads(session.scalar(select(Job.config).where(Job.id == job_id)) or "{}")
    columns = select(MeasuredFamily.family, MeasuredFamily.state, MeasuredFamily.error)
    known = {row.family: row for row in session.execute(columns.where(MeasuredFamily.job_id == job_id))}
    wanted: list[str] = config["plan"]["metrics"]
    return {
        family: (known[family].error or "").partition("\n")[0] if family in known else "was not measured"
        for family in wanted
        if family not in known or known[family].state != "measured"
    }


def _state(session: Session, lease: Lease, family: str) -> str | None:
    mine = (MeasuredFamily.job_id == lease.job_id, MeasuredFamily.family == family)
    return session.scalar(select(MeasuredFamily.state).where(*mine))


def _set_family(session: Session, lease: Lease, family: str, **values: Any) -> None:
    values |= {"attempt": lease.attempt, "at": db_now()}
    make = dialect_insert(session, MeasuredFamily).values(job_id=lease.job_id, family=family, **values)
    session.execute(make.on_conflict_do_update(index_elements=["job_id", "family"], set_=values))


def _score(score: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: score.get(name) for name in _FIELDS}
    values["details"] = _storable(dict(score["details"])) if score.get("details") else None
    return values | {"variant": score.get("variant") or ""}


def _storable(value: Any) -> Any:
    """Return a value as JSON of every database has it: a number that is not finite is null, and no text ends early."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode(errors="replace").decode().replace("\0", "\N{SYMBOL FOR NULL}")
    if isinstance(value, Mapping):
        return {_storable(str(key)): _storable(inner) for key, inner in value.items()}
    return [_storable(inner) for inner in value] if isinstance(value, list | tuple) else value
