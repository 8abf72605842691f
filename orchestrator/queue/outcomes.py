"""How an attempt ends: with a result, a failure, or the job handed back. Each is one fenced transaction."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.orm import Session

from orchestrator import saes
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Attempt, ConvergenceRow, Job, ResultRow, SweepRow
from orchestrator.job_states import State
from orchestrator.queue.analysis import Analysis, analyse
from orchestrator.queue.evaluation_jobs import after_training
from orchestrator.queue.fencing import (
    MAX_PREEMPTIONS,
    backoff,
    close_attempt,
    landing,
    log_event,
    log_events,
    lost,
    move,
    state_after,
    storable,
)
from orchestrator.queue.types import Lease, Result

_JOBS_PER_TRANSACTION = 1000
"""Jobs per transaction, where many change at once: other workers must not be kept from their own."""


def finish(engine: Engine, lease: Lease, result: Result) -> int | None:
    """Store the result, its convergence counts and the state `succeeded`, together. Finishing twice is once.

    A job that diverged has a result too: it succeeded in telling so. Where the sweep says what is measured of its SAEs,
    the evaluation of this one is queued in the same transaction; its id is returned, for workers to be woken.

    Raises:
        LeaseLost: this worker has been given up; nothing was stored.
    """
    # Only the holder of the lease writes the curve, and `close_attempt` below proves that it is still this one: the
    # curve analysed before the transaction is the one that the transaction finds, and no lock is held meanwhile.
    analysis = analyse(engine, lease.job_id, result.outcome)
    with transaction(engine) as session:
        if close_attempt(session, lease, outcome=result.outcome, exit_code=0) is None:
            if _finished_before(session, lease, result.outcome):
                return None
            raise lost(lease)
        wanted = session.scalar(select(Job.desired).where(Job.id == lease.job_id))
        move(session, lease, "succeeded", reason=None, lost_in_row=0)
        _store(session, lease, result, analysis)
        saes.record_finished(session, lease.job_id)
        evaluation = after_training(session, lease.job_id)
        log_event(session, "succeeded", lease, outcome=result.outcome)
        if wanted != "run":
            log_event(session, f"{wanted}_too_late", lease)
        return evaluation


def fail(
    engine: Engine,
    lease: Lease,
    *,
    error: str,
    exit_code: int | None,
    outcome: str,
    retry: bool,
    reason: str = "",
    backoff_seconds: float = 30.0,
) -> State:
    """Close a failed attempt; the job is queued again after a pause, or given up. Return its state.

    Raises:
        LeaseLost: this worker has been given up.
    """
    with transaction(engine) as session:
        if close_attempt(session, lease, outcome=outcome, exit_code=exit_code, error=storable(error)) is None:
            return state_after(session, lease, outcome)
        desired, failures, _, allowed = _budget(session, lease)
        failures += 1
        state = landing(desired, "queued" if retry and failures < allowed else "failed")
        summary = storable(reason) or (storable(error).strip().splitlines() or [outcome])[0]
        why = f"{summary} ({failures} of {allowed} failures)" if retry else summary
        pause = backoff(failures - 1, backoff_seconds) if state == "queued" else 0.0
        move(session, lease, state, failures=failures, reason=why, not_before=db_now() + pause if pause else 0.0)
        log_event(session, state, lease, outcome=outcome, reason=why)
    return state


def fail_alike(
    engine: Engine, lease: Lease, *, stream_key: str, subject: Mapping[str, Any] | None, reason: str
) -> list[int]:
    """Fail the queued jobs that would fail as a job did, for what they read; return their ids.

    They read the same stream, at the place that `subject`, that part of their configs, says; None: at any. None of them
    has been tried yet: one that was has shown that it can be trained, or fails by itself.
    """
    alike = (Job.stream_key == stream_key, Job.state == "queued", Job.desired == "run", Job.attempt == 0)
    with reading(engine) as session:
        rows = session.execute(select(Job.id, Job.config).where(*alike).order_by(Job.id)).all()
    ids = [row.id for row in rows if subject is None or json.loads(row.config)["subject"] == subject]
    failed: list[int] = []
    for first in range(0, len(ids), _JOBS_PER_TRANSACTION):
        some = ids[first : first + _JOBS_PER_TRANSACTION]
        values = {"state": "failed", "finished_at": db_now(), "reason": storable(f"as job {lease.job_id}: {reason}")}
        with transaction(engine) as session:
            change = update(Job).where(Job.id.in_(some), *alike).values(**values).returning(Job.id)
            done = sorted(session.scalars(change))
            log_events(session, "failed", done, outcome="config", reason=f"as job {lease.job_id}")
        failed += done
    return failed


def release(engine: Engine, lease: Lease, *, outcome: str = "preempted", reason: str = "") -> State:
    """Hand a checkpointed job back; it is queued at once, or paused or cancelled as was asked. Return its state.

    Raises:
        LeaseLost: this worker has been given up.
    """
    with transaction(engine) as session:
        if close_attempt(session, lease, outcome=outcome, exit_code=None) is None:
            return state_after(session, lease, outcome)
        desired, _, preemptions, _ = _budget(session, lease)
        state = landing(desired, "queued")
        if state == "queued":
            preemptions += 1
        if state == "queued" and preemptions >= MAX_PREEMPTIONS:
            state, reason = "failed", f"preempted {preemptions} times"
        move(session, lease, state, preemptions=preemptions, reason=reason or None, not_before=0.0)
        log_event(session, state, lease, outcome=outcome)
    return state


def hand_back(engine: Engine, lease: Lease, *, error: str) -> State:
    """Hand a job back that its machine could not serve: it spends nothing and is queued at once. Return its state.

    Raises:
        LeaseLost: this worker has been given up.
    """
    return _end_free(engine, lease, "machine", error=error)


def crashed_in_company(engine: Engine, lease: Lease, *, error: str, exit_code: int, n_jobs: int) -> State:
    """Close an attempt whose trainer crashed with several jobs in it: none is charged, and half of them share the next.

    So the guilty one is found in a few halvings; alone, its next crash is a failure of its own.

    Raises:
        LeaseLost: this worker has been given up.
    """
    shared = f" ({n_jobs} jobs shared the process)"
    half = (n_jobs + 1) // 2
    return _end_free(engine, lease, "crashed", error=error, exit_code=exit_code, more=shared, company=half)


def _end_free(
    engine: Engine,
    lease: Lease,
    outcome: str,
    *,
    error: str,
    exit_code: int | None = None,
    more: str = "",
    **values: Any,
) -> State:
    """Close an attempt that costs its job nothing, and queue the job at once, unless it is to end or to pause."""
    error = storable(error)
    with transaction(engine) as session:
        if close_attempt(session, lease, outcome=outcome, exit_code=exit_code, error=error) is None:
            return state_after(session, lease, outcome)
        state, why = landing(_budget(session, lease)[0], "queued"), error.partition("\n")[0] + more
        move(session, lease, state, reason=why, not_before=0.0, **values)
        log_event(session, state, lease, outcome=outcome, reason=why)
    return state


def _budget(session: Session, lease: Lease) -> tuple[str, int, int, int]:
    columns = select(Job.desired, Job.failures, Job.preemptions, SweepRow.max_failures)
    query = columns.join(SweepRow, SweepRow.id == Job.sweep_id).where(Job.id == lease.job_id)
    return session.execute(query.with_for_update(of=Job)).one()


def _finished_before(session: Session, lease: Lease, outcome: str) -> bool:
    """Say whether this attempt has ended so: its attempt says it, also where the job has been extended since."""
    mine = (Attempt.job_id == lease.job_id, Attempt.attempt == lease.attempt, Attempt.token == lease.token)
    return session.scalar(select(Attempt.job_id).where(*mine, Attempt.outcome == outcome)) is not None


def _store(session: Session, lease: Lease, result: Result, analysis: Analysis) -> None:
    measured = {name: getattr(analysis.last, name, None) for name in ("fvu", "fvu_raw", "dead_share", "l0")}
    row = vars(result) | measured | analysis.limit
    session.execute(insert(ResultRow).values(job_id=lease.job_id, attempt=lease.attempt, token=lease.token, **row))
    if analysis.counts:
        session.execute(insert(ConvergenceRow), [{"job_id": lease.job_id} | count for count in analysis.counts])
