"""Which jobs come before a job in the queue, and which could share its trainer."""

from typing import NamedTuple

from sqlalchemy import Engine, and_, func, or_, select

from orchestrator.database import models as m
from orchestrator.database.engine import reading
from orchestrator.errors import NotFound
from orchestrator.queue.eligibility import may_run_now, may_share, queue_order


class QueuePosition(NamedTuple):
    """Where a job stands among the others."""

    before: int
    """Queued jobs that may run now and come first: of higher priority, or older."""
    first: int | None
    """The first of them to be claimed."""
    is_alone: bool
    """Whether it is trained alone: it has failed before, lost its worker, or names no stream."""
    companions_queued: int
    """Other queued jobs of its stream that have not failed."""
    companions_running: int


def position_in_queue(engine: Engine, job_id: int) -> QueuePosition:
    """Return where a job stands.

    Raises:
        NotFound: there is no such job.
    """
    job = m.Job
    with reading(engine) as session:
        columns = select(job.priority, job.stream_key, may_share().label("may_share")).where(job.id == job_id)
        mine = session.execute(columns).one_or_none()
        if mine is None:
            raise NotFound(f"there is no job {job_id}", hint="orch status lists them")
        comes_first = or_(job.priority > mine.priority, and_(job.priority == mine.priority, job.id < job_id))
        before = select(job.id).where(may_run_now(), comes_first)
        companions = select(func.count()).select_from(job).where(job.stream_key == mine.stream_key, job.id != job_id)
        return QueuePosition(
            before=session.scalar(select(func.count()).select_from(before.subquery())) or 0,
            first=session.scalar(before.order_by(*queue_order()).limit(1)),
            is_alone=not mine.may_share,
            companions_queued=session.scalar(companions.where(job.state == "queued", may_share())) or 0,
            companions_running=session.scalar(companions.where(job.state == "running")) or 0,
        )
