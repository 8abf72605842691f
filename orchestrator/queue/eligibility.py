"""Which queued jobs may run now, and what keeps the others waiting: one table of obstacles, for claims and people."""

from functools import cache
from typing import Literal

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, not_, select

from orchestrator.database.engine import db_now
from orchestrator.database.models import Job, QueuePause, SweepRow
from orchestrator.queue.fencing import MAX_BACKOFF_SECONDS

Obstacle = Literal["asked", "queue paused", "sweep paused", "arriving", "backoff", "sweep cap"]

_BY_REQUEST: tuple[Obstacle, ...] = ("asked", "queue paused", "sweep paused")
"""What only a person takes away; the others end by themselves."""


@cache
def _obstacles() -> dict[Obstacle, ColumnElement[bool]]:
    """Return the condition on a queued job of each obstacle, in the order in which people are told of them.

    Sweeps are listed by subqueries that name no job: an index then gives the queue's order, and a long queue of a
    paused sweep costs no look-up per job.
    """
    paused = select(SweepRow.id).where(SweepRow.paused).correlate(None)
    arriving = select(SweepRow.id).where(SweepRow.arriving_after.is_not(None)).correlate(None)
    since = select(SweepRow.arriving_after).where(SweepRow.id == Job.sweep_id).correlate(Job).scalar_subquery()
    return {
        "asked": Job.desired != "run",
        "queue paused": exists(select(QueuePause.id)),
        "sweep paused": Job.sweep_id.in_(paused),
        "arriving": and_(Job.sweep_id.in_(arriving), Job.id > since),
        "backoff": and_(Job.not_before > db_now(), Job.not_before <= db_now() + MAX_BACKOFF_SECONDS),
        "sweep cap": Job.sweep_id.in_(full_sweeps()),
    }


def full_sweeps() -> Select[int]:
    """Select the sweeps that run as many jobs as their max_parallel allows."""
    running = select(func.count()).select_from(Job).where(Job.sweep_id == SweepRow.id, Job.state == "running")
    most = SweepRow.max_parallel
    return select(SweepRow.id).where(most <= running.correlate(SweepRow).scalar_subquery()).correlate(None)


@cache
def may_run_now() -> ColumnElement[bool]:
    """Return the condition under which a worker may claim a job."""
    return and_(Job.state == "queued", *(not_(holds) for holds in _obstacles().values()))


@cache
def obstacle() -> ColumnElement[Obstacle | None]:
    """Return the first obstacle of a queued job; NULL of one that may run now, and of one that is not queued."""
    found = [(holds, name) for name, holds in _obstacles().items()]
    return case((Job.state != "queued", None), *found, else_=None)


def obstacle_flags(job_id: int) -> Select[*tuple[bool, ...]]:
    """Select of one job whether each obstacle is in its way, by the obstacle's name, whatever its state."""
    return select(*(holds.label(name) for name, holds in _obstacles().items())).where(Job.id == job_id)


@cache
def waits_by_itself() -> ColumnElement[bool]:
    """Return the condition on a job that is queued and will run without a person doing anything."""
    return and_(Job.state == "queued", *(not_(_obstacles()[name]) for name in _BY_REQUEST))


@cache
def may_share() -> ColumnElement[bool]:
    """Return the condition under which a job may share a trainer: it names a stream, never failed, and is no poison.

    A job that lost its worker once shares again: its companions lost it too, and a machine that dies is no job's fault.
    """
    return and_(Job.stream_key.is_not(None), Job.failures == 0, Job.lost_in_row <= 1)


def queue_order() -> tuple[ColumnElement[int], ColumnElement[int]]:
    """Return the order in which jobs are claimed: by priority, then the oldest first."""
    return Job.priority.desc(), Job.id.asc()
