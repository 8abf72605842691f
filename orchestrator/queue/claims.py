"""A worker takes a job: one short transaction that leaves job, lease and attempt row consistent.

Its statements are built once: to build one anew takes five times as long as to send it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Engine, Row, Select, bindparam, case, func, insert, select, update
from sqlalchemy.orm import Session

from orchestrator import saes
from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import Attempt, CheckpointRow, Job, LeaseRow, MeasuredFamily, SweepRow
from orchestrator.database.settled import settled_dtype
from orchestrator.errors import ConfigError
from orchestrator.queue.eligibility import full_sweeps, may_run_now, may_share, queue_order
from orchestrator.queue.fencing import log_event
from orchestrator.queue.outcomes import fail
from orchestrator.queue.queue_pause import enter, read_in_order
from orchestrator.queue.types import Claim, Lease, Worker
from orchestrator.saes import SaeEntry

if TYPE_CHECKING:
    from orchestrator.queue.types import AnyConfig

Query = Select[*tuple[Any, ...]]
_MOST_PASSED_OVER = 32
"""After so many companions that do not fit, no further one is tried."""


def claim(
    engine: Engine, worker: Worker, *, token: str, lease_seconds: float, without: Collection[int] = ()
) -> Claim | None:
    """Take the next job that may run, or None when there is none.

    The token is made by the caller before the call. When the answer of a commit was lost, calling again with the same
    token adopts the claim that was made. Jobs of `without` are left to others.

    Raises:
        StorageError: the database did not answer; call again with the same token.
    """
    return _claim(engine, worker, token, lease_seconds, _Choice(_first(), without=without))


def claim_companion(
    engine: Engine,
    worker: Worker,
    *,
    leader: Claim,
    token: str,
    held: int = 1,
    lease_seconds: float,
    without: Collection[int] = (),
    fits: Callable[["AnyConfig"], bool] = lambda _: True,
) -> Claim | None:
    """Take the next job that may run in the trainer of `leader`, or None; tokens as in `claim`.

    It reads the same stream from the same position, in the same precision, and has not failed: a job that may end its
    trainer is trained alone. The stream of an evaluation is no training's: all jobs of one process are of one kind.
    `held` jobs are in it by now. `fits` is called within the transaction, and must answer at once.

    Raises:
        StorageError: the database did not answer; call again with the same token.
    """
    place = {"its_stream": leader.stream_key, "its_cursor": leader.cursor, "held": held}
    place |= {"its_dtype": leader.subject_dtype}
    return _claim(engine, worker, token, lease_seconds, _Choice(_first_companion(), place, fits, without))


class _Choice(NamedTuple):
    """Which jobs may be claimed: a query, and a condition on the config that SQL cannot state."""

    query: Query
    values: Mapping[str, Any] = {}
    """The query's parameters."""
    fits: Callable[["AnyConfig"], bool] | None = None
    without: Collection[int] = ()
    """Jobs that are not to be claimed."""


class _Taken(NamedTuple):
    """A job that this worker holds."""

    lease: Lease
    job: Row[Any]
    """Its `_columns`."""
    checkpoints: tuple[CheckpointRef, ...]
    sae: SaeEntry | None = None
    """Of an evaluation; None also where it is gone."""
    trained_on: Mapping[str, Any] = {}
    """Facts of the attempt that trained that SAE."""
    measured: tuple[str, ...] = ()


class _Unreadable(NamedTuple):
    """A claimed job whose stored config this version cannot read: no attempt can run it."""

    lease: Lease
    error: str


def _claim(engine: Engine, worker: Worker, token: str, lease_seconds: float, choice: _Choice) -> Claim | None:
    while True:
        taken = _take(engine, worker, token, lease_seconds, choice)
        if not isinstance(taken, _Unreadable):
            return taken
        fail(engine, taken.lease, error=taken.error, exit_code=78, outcome="config", retry=False)


def _take(
    engine: Engine, worker: Worker, token: str, lease_seconds: float, choice: _Choice
) -> Claim | _Unreadable | None:
    with transaction(engine) as session:
        taken = _adopted(session, token) or _next(session, worker, token, lease_seconds, choice)
        if taken is None:
            return None
        lease, job, checkpoints = taken.lease, taken.job, taken.checkpoints
        if job.kind == "evaluate":
            taken = _with_its_sae(session, taken)
    try:
        config = _read(job)
    except ConfigError as error:
        return _Unreadable(lease, f"the stored config is not valid here: {error.message}")
    claim = Claim(
        lease, config, job.sweep, checkpoints, job.stream_key, job.company, kind=job.kind,
        subject_dtype=job.subject_dtype,
    )  # fmt: skip
    return _evaluation(claim, taken) if job.kind == "evaluate" else claim


def _with_its_sae(session: Session, taken: _Taken) -> _Taken:
    measured = select(MeasuredFamily.family).where(MeasuredFamily.job_id == taken.job.id)
    families = session.scalars(measured.where(MeasuredFamily.state == "measured").order_by(MeasuredFamily.family))
    found = saes.read(session, [taken.job.sae_id] if taken.job.sae_id is not None else [])
    sae = found[0] if found else None
    of_sae = (Attempt.job_id == sae.job_id, Attempt.attempt == sae.attempt) if sae and sae.job_id else None
    facts = None if of_sae is None else session.scalar(select(Attempt.facts).where(*of_sae))
    return taken._replace(sae=sae, trained_on=facts or {}, measured=tuple(families))


def _evaluation(claim: Claim, taken: _Taken) -> Claim | _Unreadable:
    """Return the claim of an evaluation, whose SAE must still be the one it was queued for."""
    from orchestrator.config.evaluation.evaluation import EvaluatedSae, EvaluationConfig

    assert isinstance(claim.config, EvaluationConfig)
    sae = taken.sae
    if sae is None:
        return _Unreadable(claim.lease, "its SAE is gone: it was removed, or its job deleted")
    if sae.attempt != claim.config.sae.attempt:
        return _Unreadable(claim.lease, f"job {sae.job_id} has been trained further since: orch evaluate {sae.label}")
    read = {name: taken.trained_on[name] for name in ("subject", "tokens") if name in taken.trained_on}
    evaluated = EvaluatedSae(uri=sae.uri, label=sae.label, facts=sae.facts.as_json(), trained_on=read)
    return replace(claim, evaluated=evaluated, measured=taken.measured)


def waiting(engine: Engine, *, limit: int) -> list[int]:
    """Return the first jobs that may run now, in the order in which they will."""
    with reading(engine) as session:
        read_in_order(session)
        return [*session.scalars(_eligible().with_only_columns(Job.id).limit(limit))]


def _read(job: Row[Any]) -> "AnyConfig":
    if job.kind == "evaluate":
        from orchestrator.config.evaluation.reading import read_evaluation

        return read_evaluation(job.config, job.config_id)
    if job.kind == "lens":
        from orchestrator.config.lens.reading import read_lens

        return read_lens(job.config, job.config_id)
    from orchestrator.config.validation import read_stored

    return read_stored(job.config, job.config_id)


def _adopted(session: Session, token: str) -> _Taken | None:
    row = session.execute(_held(), {"our_token": token}).one_or_none()
    return _Taken(Lease(row.id, row.held, token), row, _checkpoints(session, row.id)) if row else None


def _next(session: Session, worker: Worker, token: str, lease_seconds: float, choice: _Choice) -> _Taken | None:
    job = _pick(session, choice)
    if job is None:
        return None
    connection = session.connection()
    attempt = connection.scalar(_taking(), {"this_job": job.id, "last_attempt": job.attempt})
    if attempt is None:
        return None
    checkpoints = _checkpoints(session, job.id) if job.attempt else ()
    held = {"job_id": job.id, "attempt": attempt, "token": token}
    resumable = checkpoints[0].tokens_seen if checkpoints else 0
    connection.execute(_leasing(), held | {"lease_seconds": lease_seconds, "tokens_seen": resumable})
    who = {"worker": worker.name, "host": worker.host, "pid": worker.pid, "device": worker.device}
    connection.execute(_attempting(), held | who)
    lease = Lease(job.id, attempt, token)
    log_event(session, "claimed", lease, worker=worker.name)
    return _Taken(lease, job, checkpoints)


def _pick(session: Session, choice: _Choice) -> Row[Any] | None:
    """Lock the first job that may be taken, highest priority first, then the oldest."""
    enter(session)
    full: list[int] = []
    passed: list[int] = []
    query = choice.query.where(Job.id.not_in(choice.without)) if choice.without else choice.query
    while len(passed) < _MOST_PASSED_OVER:
        job = session.execute(query, choice.values).one_or_none()
        if job is None:
            return None
        if job.max_parallel is not None and job.sweep_id in _capped(session, job.sweep_id) and _is_full(session, job):
            full.append(job.sweep_id)
        elif choice.fits is None or _is_accepted(job, choice.fits):
            return job
        else:
            passed.append(job.id)
        query = choice.query.where(Job.sweep_id.not_in(full), Job.id.not_in([*choice.without, *passed]))
    return None


def _is_accepted(job: Row[Any], fits: Callable[["AnyConfig"], bool]) -> bool:
    try:
        return fits(_read(job))
    except ConfigError:  # the job fails when it is claimed as a leader
        return False


def _columns() -> list[Any]:
    """Return what a claim is made of, beside its lease and its checkpoints."""
    own = (Job.id, Job.kind, Job.sae_id, Job.attempt, Job.sweep_id, Job.config, Job.config_id, Job.company)
    stream_key = case((may_share(), Job.stream_key), else_=None).label("stream_key")
    named = (SweepRow.name.label("sweep"), SweepRow.max_parallel)
    of_sweep = [select(one).where(SweepRow.id == Job.sweep_id).scalar_subquery().label(one.key) for one in named]
    return [*own, stream_key, settled_dtype().label("subject_dtype"), *of_sweep]


@cache
def _eligible() -> Query:
    """Select the jobs that may run now, in the order in which they will."""
    return select(*_columns()).where(may_run_now()).order_by(*queue_order())


@cache
def _first() -> Query:
    """Lock the first job that may run, and skip those that other claims hold locked."""
    return _eligible().with_for_update(skip_locked=True, of=Job).limit(1)


@cache
def _first_companion() -> Query:
    """Lock the first job that may run, may share a trainer, and reads `its_stream` from `its_cursor` on."""
    cursor = select(func.max(CheckpointRow.tokens_seen)).where(CheckpointRow.job_id == Job.id).scalar_subquery()
    alike = may_share() & (Job.stream_key == bindparam("its_stream"))
    alike &= Job.company.is_(None) | (Job.company > bindparam("held"))
    alike &= settled_dtype().is_not_distinct_from(bindparam("its_dtype"))
    return _first().where(alike, func.coalesce(cursor, 0) == bindparam("its_cursor"))


@cache
def _held() -> Query:
    return (
        select(*_columns(), LeaseRow.attempt.label("held"))
        .join(LeaseRow, LeaseRow.job_id == Job.id)
        .where(LeaseRow.token == bindparam("our_token"))
    )


@cache
def _taking() -> Any:
    """Compare and set: take the job that was read, if its state and attempt are still what they were."""
    same = (Job.id == bindparam("this_job"), Job.attempt == bindparam("last_attempt"), Job.state == "queued")
    return update(Job).where(*same).values(state="running", attempt=Job.attempt + 1, reason=None).returning(Job.attempt)


@cache
def _leasing() -> Any:
    now = db_now()
    names = ("job_id", "attempt", "token", "tokens_seen")
    until = {"expires_at": now + bindparam("lease_seconds"), "progress_at": now}
    return insert(LeaseRow).values(**{name: bindparam(name) for name in names}, **until)


@cache
def _attempting() -> Any:
    names = ("job_id", "attempt", "token", "worker", "host", "pid", "device")
    return insert(Attempt).values(**{name: bindparam(name) for name in names}, started_at=db_now())


def _capped(session: Session, sweep_id: int) -> list[int]:
    """Lock the sweep if it has a cap: two claims at once must not both take its last slot."""
    lock = select(SweepRow.id).where(SweepRow.id == sweep_id, SweepRow.max_parallel.is_not(None))
    return list(session.scalars(lock.with_for_update(key_share=True)))


def _is_full(session: Session, job: Row[Any]) -> bool:
    return session.scalar(full_sweeps().where(SweepRow.id == job.sweep_id)) is not None


@cache
def _saved() -> Query:
    newest = (CheckpointRow.tokens_seen.desc(), CheckpointRow.attempt.desc())
    columns = select(CheckpointRow.uri, CheckpointRow.tokens_seen, CheckpointRow.sha256)
    return columns.where(CheckpointRow.job_id == bindparam("this_job")).order_by(*newest)


def _checkpoints(session: Session, job_id: int) -> tuple[CheckpointRef, ...]:
    """Return a job's checkpoints, the newest first."""
    rows = session.execute(_saved(), {"this_job": job_id})
    return tuple(CheckpointRef(row.uri, row.tokens_seen, row.sha256) for row in rows)
