"""Requests about jobs and sweeps: cancel, pause, resume, retry, reprioritise."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import LIVE, Event, Job, SweepRow
from orchestrator.errors import NotFound, StateError
from orchestrator.job_states import FREED, TERMINAL, State
from orchestrator.queue.fencing import log_events
from orchestrator.queue.types import Change

_JOBS_PER_TRANSACTION = 1000
"""Jobs per transaction: a request about a long queue must not block the workers."""


class _Step(NamedTuple):
    """What a request does to a job in a given state: new column values (none = no change), and the effect in words."""

    values: dict[str, Any]
    effect: str
    allowed: bool = True


def cancel(engine: Engine, job_ids: Sequence[int]) -> list[Change]:
    """Cancel jobs: those that wait at once, those that run at their next heartbeat.

    Raises:
        StateError: the only job named has ended already.
        NotFound: a job that does not exist.
    """
    ended = {"state": "cancelled", "desired": "run", "finished_at": db_now(), "reason": "cancelled by hand"}

    def step(state: str, desired: str) -> _Step:
        if state == "running":
            return _Step({} if desired == "cancel" else {"desired": "cancel"}, "asked to stop")
        if state in TERMINAL:
            return _Step({}, f"already {state}", state == "cancelled")
        return _Step(ended, "cancelled")

    return _request(engine, job_ids, step, "cancel")


def pause(engine: Engine, job_ids: Sequence[int]) -> list[Change]:
    """Pause jobs: those that are queued at once, those that run after their next checkpoint.

    Raises:
        StateError: the only job named has ended already, or is being cancelled.
        NotFound: a job that does not exist.
    """

    def step(state: str, desired: str) -> _Step:
        if state == "running":
            if desired == "cancel":
                return _Step({}, "is being cancelled", allowed=False)
            return _Step({} if desired == "pause" else {"desired": "pause"}, "asked to pause")
        if state == "queued":
            return _Step({"state": "paused"}, "paused")
        return _Step({}, f"already {state}", state == "paused")

    return _request(engine, job_ids, step, "pause")


def resume(engine: Engine, job_ids: Sequence[int]) -> list[Change]:
    """Queue paused jobs again.

    Raises:
        StateError: the only job named is not paused.
        NotFound: a job that does not exist.
    """

    def step(state: str, desired: str) -> _Step:
        if state == "paused":
            return _Step({"state": "queued", "not_before": 0.0, "reason": None}, "queued")
        if state == "running" and desired == "pause":
            return _Step({"desired": "run"}, "runs on")
        if state == "running" and desired == "cancel":
            return _Step({}, "is being cancelled", allowed=False)
        return _Step({}, f"already {state}", state in {"queued", "running"})

    return _request(engine, job_ids, step, "resume")


def retry(engine: Engine, job_ids: Sequence[int]) -> list[Change]:
    """Queue failed or cancelled jobs again, with fresh budgets and from their last checkpoint.

    Raises:
        StateError: the only job named did neither, or its config has been enqueued again since.
        NotFound: a job that does not exist.
    """
    budgets = dict.fromkeys(("failures", "preemptions", "lost_in_row"), 0)
    fresh: dict[str, Any] = dict.fromkeys(("finished_at", "reason", "hidden", "company"))
    again = {"state": "queued", "desired": "run", "not_before": 0.0} | fresh | budgets

    def step(state: str, desired: str) -> _Step:
        if state in FREED:
            return _Step(again, "queued")
        return _Step({}, f"already {state}", state == "queued")

    return _request(engine, job_ids, step, "retry")


def reprioritise(engine: Engine, job_ids: Sequence[int], *, priority: int) -> list[Change]:
    """Give jobs that have not ended another priority; of a running one it counts when it is queued again.

    Raises:
        StateError: the only job named has ended.
        NotFound: a job that does not exist.
    """

    def step(state: str, desired: str) -> _Step:
        if state in TERMINAL:
            return _Step({}, f"already {state}", allowed=False)
        return _Step({"priority": priority}, f"has priority {priority}")

    return _request(engine, job_ids, step, "reprioritise")


def pause_sweep(engine: Engine, sweep_id: int) -> None:
    """Let no further job of a sweep start; its running jobs go on."""
    _set_paused(engine, sweep_id, paused=True)


def resume_sweep(engine: Engine, sweep_id: int) -> None:
    """Let jobs of a paused sweep start again."""
    _set_paused(engine, sweep_id, paused=False)


def _set_paused(engine: Engine, sweep_id: int, *, paused: bool) -> None:
    with transaction(engine) as session:
        done = update(SweepRow).where(SweepRow.id == sweep_id).values(paused=paused).returning(SweepRow.id)
        if session.scalar(done) is None:
            raise NotFound(f"there is no sweep {sweep_id}", hint="orch status lists them")
        kind = "sweep_paused" if paused else "sweep_resumed"
        session.execute(insert(Event).values(sweep_id=sweep_id, at=db_now(), kind=kind))


def _request(engine: Engine, job_ids: Sequence[int], step: Callable[[str, str], _Step], verb: str) -> list[Change]:
    wanted = sorted(set(job_ids))
    changes: dict[int, Change] = {}
    for ids in _batches(wanted):
        with transaction(engine) as session:
            changes |= _apply(session, ids, step, verb, alone=len(wanted) == 1)
    return [changes[job_id] for job_id in dict.fromkeys(job_ids)]


def _apply(
    session: Session, ids: list[int], step: Callable[[str, str], _Step], verb: str, *, alone: bool
) -> dict[int, Change]:
    query = select(Job.id, Job.state, Job.desired, Job.hidden).where(Job.id.in_(ids)).order_by(Job.id).with_for_update()
    rows = session.execute(query).all()
    if verb == "retry":
        _lock_sweeps(session, ids)
    gone = _Step({}, "is deleted", allowed=False)
    found = {row.id: gone if row.hidden == "deleted" else step(row.state, row.desired) for row in rows}
    if missing := [job_id for job_id in ids if job_id not in found]:
        raise NotFound(f"there is no job {missing[0]}", hint="orch status lists them")
    if verb == "retry":
        _leave_replaced(session, found)
    if alone and not found[ids[0]].allowed:
        raise StateError(f"cannot {verb} job {ids[0]}: it {_said(found[ids[0]].effect)}", hint=f"orch explain {ids[0]}")
    for effect in dict.fromkeys(step.effect for step in found.values() if step.values):
        changed = [job_id for job_id, step in found.items() if step.effect == effect and step.values]
        session.execute(update(Job).where(Job.id.in_(changed)).values(**found[changed[0]].values))
        log_events(session, f"{verb}_asked" if effect.startswith("asked") else verb, changed)
    before = {row.id: row.state for row in rows}
    return {i: Change(i, cast(State, s.values.get("state", before[i])), s.effect) for i, s in found.items()}


def _said(effect: str) -> str:
    return effect if effect.startswith(("is ", "has ")) else f"is {effect}"


def _lock_sweeps(session: Session, ids: list[int]) -> None:
    """Lock the sweeps: an enqueue of one of them might add the same config meanwhile."""
    mine = select(Job.sweep_id).where(Job.id.in_(ids))
    rows = select(SweepRow.id).where(SweepRow.id.in_(mine)).order_by(SweepRow.id)
    session.execute(rows.with_for_update(key_share=True)).all()


def _leave_replaced(session: Session, found: dict[int, _Step]) -> None:
    """Leave out jobs whose config another job of the sweep holds by now, or comes to hold by this request."""
    columns = select(Job.id, Job.sweep_id, Job.config_id, Job.replica)
    going = [job_id for job_id, step in found.items() if step.values]
    places = session.execute(columns.where(Job.id.in_(going)).order_by(Job.id.desc())).all()
    sweeps = {row.sweep_id for row in places}
    configs = {row.config_id for row in places}
    live = columns.where(Job.sweep_id.in_(sweeps), Job.config_id.in_(configs), LIVE)
    taken = {tuple(row[1:]): row.id for row in session.execute(live)}
    for row in places:
        holder = taken.setdefault(tuple(row[1:]), row.id)
        if holder != row.id:
            found[row.id] = _Step({}, f"has been enqueued again as job {holder}", allowed=False)


def _batches(ids: list[int]) -> Iterator[list[int]]:
    return (ids[start : start + _JOBS_PER_TRANSACTION] for start in range(0, len(ids), _JOBS_PER_TRANSACTION))
