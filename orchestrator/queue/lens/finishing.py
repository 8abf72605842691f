"""The end of a lens job: its lens, what its curve comes to, and the state `succeeded`, in one fenced transaction."""

from sqlalchemy import Engine, insert, select

from orchestrator import lenses
from orchestrator.curves.lens_curve import LensPoint, LensResult
from orchestrator.database.engine import reading, transaction
from orchestrator.database.models import Attempt, ConvergenceRow, Job
from orchestrator.job_states import State
from orchestrator.queue.fencing import close_attempt, log_event, move, state_after
from orchestrator.queue.types import Lease


def finish_lens(engine: Engine, lease: Lease, result: LensResult) -> State:
    """Store the lens that a job has trained, and end the job. Finishing twice is once.

    One that diverged has a result too, without a lens: it succeeded in telling so.

    Raises:
        LeaseLost: this worker has been given up; nothing was stored.
    """
    # As in `outcomes.finish`: only the holder of the lease writes the curve, and `close_attempt` proves it is this one.
    points = lenses.curve(engine, lease.job_id)
    counts = _counts(points, result.outcome)
    with reading(engine) as session:
        mine = (Attempt.job_id == lease.job_id, Attempt.attempt == lease.attempt)
        facts = session.scalar(select(Attempt.facts).where(*mine)) or {}
    with transaction(engine) as session:
        if close_attempt(session, lease, outcome=result.outcome, exit_code=0) is None:
            return state_after(session, lease, result.outcome)
        wanted = session.scalar(select(Job.desired).where(Job.id == lease.job_id))
        move(session, lease, "succeeded", reason=None, lost_in_row=0)
        last = points[-1] if points else None
        lenses.fill(
            session, lease.job_id, **vars(result), **lenses.found_by_attempt(facts), attempt=lease.attempt,
            kl=last and last.kl, kls=last and last.kls,
        )  # fmt: skip
        if counts:
            session.execute(insert(ConvergenceRow), [{"job_id": lease.job_id} | count for count in counts])
        log_event(session, "succeeded", lease, outcome=result.outcome)
        if wanted != "run":
            log_event(session, f"{wanted}_too_late", lease)
    return "succeeded"


def _counts(points: list[LensPoint], outcome: str) -> list[dict[str, float | None]]:
    """Return the tokens to convergence of a curve, as they are stored."""
    from orchestrator.curves.convergence import EPSILONS
    from orchestrator.curves.limit import tail_fit, tokens_to_convergence

    kls = [(point.tokens_seen, point.kl) for point in points]
    tail = None if outcome in ("diverged", "not_learning") else tail_fit(kls)
    return [tokens_to_convergence(kls, epsilon=epsilon, tail=tail)._asdict() for epsilon in EPSILONS]
