"""Short calls of the queue for tests."""

import uuid
from typing import Any

from sqlalchemy import Engine, select, update

from orchestrator import queue
from orchestrator.config.validation import parse
from orchestrator.curves.point import Point
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Attempt, Job, LeaseRow
from orchestrator.queue import CheckpointRef, Claim, Lease, Result, Worker
from orchestrator.sweep.sweep import Limits, Sweep

WORKER = Worker(name="w1", host="here", pid=1, device="cpu")


def sweep(n: int = 1, *, name: str = "s", start: int = 0, **limits: Any) -> Sweep:
    """Return a sweep of n configs that differ in their seed."""
    configs = tuple(parse({"training": {"seed": start + at}, "sae": {"n_latents": 64}}) for at in range(n))
    return Sweep(name, configs, labels={"lab": "l"}, limits=Limits(**limits), text="text")


def enqueue(engine: Engine, n: int = 1, *, priority: int = 0, **kwargs: Any) -> list[int]:
    """Queue n new jobs and return their ids."""
    return [i for i in queue.enqueue(engine, sweep(n, **kwargs), priority=priority).job_ids if i is not None]


def claim(engine: Engine, *, seconds: float = 60.0, token: str | None = None) -> Claim:
    """Claim a job; there must be one."""
    got = queue.claim(engine, WORKER, token=token or uuid.uuid4().hex, lease_seconds=seconds)
    assert got is not None
    return got


def nothing_to_claim(engine: Engine) -> bool:
    return queue.claim(engine, WORKER, token=uuid.uuid4().hex, lease_seconds=60.0) is None


def point(tokens: int, fvu: float = 0.5, **values: float) -> Point:
    rest = dict.fromkeys(Point._fields[:-1], 1.0) | values | {"tokens_seen": tokens, "fvu": fvu}
    return Point(**rest)  # type: ignore[arg-type]


def result(**values: Any) -> Result:
    flops = dict.fromkeys(("flops_dense", "flops_executed", "flops_subject"), 1e12)
    start: dict[str, Any] = {
        "outcome": "converged",
        "tokens_seen": 100,
        "untrained_fvu": 0.9,
        "artifact_uri": "file",
        "wall_seconds": 2.0,
    }
    return Result(**(start | flops | values))


def ref(tokens: int) -> CheckpointRef:
    return CheckpointRef(uri=f"at/{tokens}", tokens_seen=tokens, sha256="00")


def fail(engine: Engine, lease: Lease, **values: Any) -> queue.State:
    how: dict[str, Any] = {"error": "Boom\ntrace", "exit_code": 70, "outcome": "internal", "retry": True}
    return queue.fail(engine, lease, **({"backoff_seconds": 0.0} | how | values))


def run_out(engine: Engine, job_id: int) -> None:
    """Let a lease have run out a minute ago."""
    with transaction(engine) as session:
        session.execute(update(LeaseRow).where(LeaseRow.job_id == job_id).values(expires_at=db_now() - 60.0))


def lose(engine: Engine, job_id: int) -> None:
    """Let the lease of a job run out, and be released."""
    run_out(engine, job_id)
    assert queue.release_expired(engine, grace_seconds=1.0, backoff_seconds=0.0) == [job_id]


def job(engine: Engine, job_id: int) -> Job:
    with reading(engine) as session:
        row = session.get_one(Job, job_id)
        session.expunge_all()
        return row


def state(engine: Engine, job_id: int) -> str:
    return job(engine, job_id).state


def attempt(engine: Engine, job_id: int, number: int) -> Attempt:
    with reading(engine) as session:
        row = session.get_one(Attempt, (job_id, number))
        session.expunge_all()
        return row


def events(engine: Engine, job_id: int) -> list[str]:
    from orchestrator import results

    return [event.kind for event in results.events(engine, job_id)]


def leases(engine: Engine) -> set[int]:
    with reading(engine) as session:
        return set(session.scalars(select(LeaseRow.job_id)))
