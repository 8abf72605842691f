"""Who is before a job in the queue, and which jobs could share its trainer."""

from typing import NamedTuple

from sqlalchemy import Engine, and_, func, or_, select

from orchestrator.database import models as m
from orchestrator.database.engine import db_now, reading
from orchestrator.errors import NotFound


class QueuePosition(NamedTuple):
    """Where a job stands among the others."""

    before: int
    """Queued jobs that may run now and come first: of higher priority, or older."""
    first: int | None
    """The foremost of them."""
    is_alone: bool
    """Whether it is trained alone: it has failed before, lost its worker, or names no stream."""
    mates_queued: int
    """Other queued jobs of its stream that have not failed."""
    mates_running: int


def standing(engine: Engine, job_id: int) -> QueuePosition:
    """Return where a job stands.

    Raises:
        NotFound: there is no such job.
    """
    job = m.Job
    with reading(engine) as session:
        mine = session.get(job, job_id)
        if mine is None:
            raise NotFound(f"there is no job {job_id}", hint="orch status lists them")
        open_now = (job.state == "queued", job.not_before <= db_now(), m.SweepRow.paused.is_(False))
        is_first = or_(job.priority > mine.priority, and_(job.priority == mine.priority, job.id < job_id))
        before = select(job.id).join(m.SweepRow).where(*open_now, is_first).subquery()
        order = select(job.id).where(job.id.in_(select(before.c.id))).order_by(job.priority.desc(), job.id)
        mates = select(func.count()).select_from(job).where(job.stream_key == mine.stream_key, job.id != job_id)
        sound = (job.state == "queued", job.failures == 0, job.lost_in_row == 0)
        return QueuePosition(
            before=session.scalar(select(func.count()).select_from(before)) or 0,
            first=session.scalar(order.limit(1)),
            is_alone=bool(mine.stream_key is None or mine.failures or mine.lost_in_row),
            mates_queued=session.scalar(mates.where(*sound)) or 0,
            mates_running=session.scalar(mates.where(job.state == "running")) or 0,
        )
