"""What must hold of the database between any two transactions, read off its rows alone."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Engine, select

from orchestrator.database.engine import reading
from orchestrator.database.models import (
    Attempt,
    CheckpointRow,
    CurvePoint,
    Event,
    Job,
    LeaseRow,
    LensPointRow,
    LensRow,
    MeasuredFamily,
    ResultRow,
    ScoreRow,
    SweepRow,
)
from orchestrator.job_states import FREED, TERMINAL


class Rows(NamedTuple):
    """One picture of the tables."""

    jobs: Sequence[Any]
    leases: Sequence[Any]
    attempts: Sequence[Any]
    results: Sequence[Any]
    events: Sequence[Any]
    written: Sequence[Any]
    """(job_id, attempt) of every curve point and checkpoint."""
    sweeps: Sequence[Any]
    families: Sequence[Any]
    """Those that are measured."""
    scores: Sequence[Any]
    lenses: Sequence[Any]


def broken_promises(engine: Engine) -> list[str]:
    """Return every promise that does not hold, in words; none in a sound database."""
    rows = _read(engine)
    return [
        *_leases(rows),
        *_attempts(rows),
        *_results(rows),
        *_evaluations(rows),
        *_lenses(rows),
        *_frozen(rows),
        *_places(rows),
    ]


def _read(engine: Engine) -> Rows:
    held = (Attempt.job_id, Attempt.attempt, Attempt.token, Attempt.ended_at, Attempt.outcome)
    is_measured = MeasuredFamily.state == "measured"
    with reading(engine) as session:
        jobs = select(
            Job.id, Job.kind, Job.sweep_id, Job.config_id, Job.replica, Job.state, Job.desired, Job.attempt, Job.config
        )  # fmt: skip
        written = [
            row
            for table in (CurvePoint, LensPointRow, CheckpointRow)
            for row in session.execute(select(table.job_id, table.attempt).distinct())
        ]
        return Rows(
            session.execute(jobs.order_by(Job.id)).all(),
            session.execute(select(LeaseRow.job_id, LeaseRow.attempt, LeaseRow.token)).all(),
            session.execute(select(*held).order_by(Attempt.attempt)).all(),
            session.execute(select(ResultRow.job_id, ResultRow.attempt, ResultRow.token)).all(),
            session.execute(select(Event.job_id, Event.attempt, Event.kind).order_by(Event.id)).all(),
            written,
            session.execute(select(SweepRow.id, SweepRow.max_parallel)).all(),
            session.execute(select(MeasuredFamily.job_id, MeasuredFamily.family).where(is_measured)).all(),
            session.execute(select(ScoreRow.job_id, ScoreRow.family)).all(),
            session.execute(select(LensRow.job_id, LensRow.attempt, LensRow.outcome)).all(),
        )


def _leases(rows: Rows) -> Iterator[str]:
    """A job runs if and only if its newest attempt holds a lease, and that attempt alone is open."""
    running = {(job.id, job.attempt) for job in rows.jobs if job.state == "running"}
    held = {(lease.job_id, lease.attempt) for lease in rows.leases}
    if running != held:
        yield f"running {sorted(running)}, but leases for {sorted(held)}"
    open_ = {(row.job_id, row.attempt, row.token) for row in rows.attempts if row.ended_at is None}
    if open_ != {tuple(lease) for lease in rows.leases}:
        yield f"open attempts {sorted(open_)}, but leases {sorted(tuple(lease) for lease in rows.leases)}"
    for job in rows.jobs:
        if job.state != "running" and job.desired != "run":
            yield f"job {job.id} is {job.state}, and yet asked to {job.desired}"


def _attempts(rows: Rows) -> Iterator[str]:
    """Attempts count 1, 2, 3, ...; each is one claim; and only attempts that were claimed have written."""
    numbers: dict[int, list[int]] = defaultdict(list)
    for row in rows.attempts:
        numbers[row.job_id].append(row.attempt)
        if (row.ended_at is None) != (row.outcome is None):
            yield f"job {row.job_id}: attempt {row.attempt} ended at {row.ended_at} as {row.outcome}"
    claims = Counter(row.job_id for row in rows.events if row.kind == "claimed")
    for job in rows.jobs:
        if numbers[job.id] != list(range(1, job.attempt + 1)) or claims[job.id] != job.attempt:
            yield f"job {job.id}: attempt {job.attempt}, rows {numbers[job.id]}, {claims[job.id]} claims"
    for row in rows.written:
        if row.attempt not in numbers[row.job_id]:
            yield f"job {row.job_id}: something was written by attempt {row.attempt}, which never was"


def _results(rows: Rows) -> Iterator[str]:
    """A training has succeeded if and only if it has its one result, which its newest attempt brought."""
    brought = {row.job_id: (row.attempt, row.token) for row in rows.results}
    tokens = {(row.job_id, row.attempt): row.token for row in rows.attempts}
    for job in rows.jobs:
        if job.kind != "train":
            continue
        if (job.state == "succeeded") != (job.id in brought):
            yield f"job {job.id} is {job.state}, its result is of attempt {brought.get(job.id)}"
        elif job.id in brought and brought[job.id] != (job.attempt, tokens.get((job.id, job.attempt))):
            yield f"job {job.id}: the result is of attempt {brought[job.id]}, the newest is {job.attempt}"


def _evaluations(rows: Rows) -> Iterator[str]:
    """An evaluation has succeeded if and only if its newest attempt ended so, and every family is measured."""
    measured: dict[int, set[str]] = defaultdict(set)
    for row in rows.families:
        measured[row.job_id].add(row.family)
    last = {row.job_id: row.outcome for row in rows.attempts}
    for job in rows.jobs:
        if job.kind == "evaluate" and job.state == "succeeded":
            wanted = set(json.loads(job.config)["plan"]["metrics"])
            if (last.get(job.id), measured[job.id]) != ("evaluated", wanted):
                yield f"job {job.id} has succeeded, its attempt {last.get(job.id)} with {sorted(measured[job.id])}"
    for row in rows.scores:
        if row.family not in measured[row.job_id]:
            yield f"job {row.job_id}: a score of {row.family}, which is not measured"


def _lenses(rows: Rows) -> Iterator[str]:
    """A job that trains a lens has one row of it from the first; what it came to is of its newest attempt."""
    found: dict[int, list[tuple[int | None, str | None]]] = defaultdict(list)
    for row in rows.lenses:
        found[row.job_id].append((row.attempt, row.outcome))
    last = {row.job_id: row.outcome for row in rows.attempts}
    for job in rows.jobs:
        if job.kind == "lens":
            wanted = (job.attempt, last[job.id]) if job.state == "succeeded" else (None, None)
            if found[job.id] != [wanted]:
                yield f"job {job.id} is {job.state}, its attempt {job.attempt} {last.get(job.id)}, {found[job.id]}"


def _frozen(rows: Rows) -> Iterator[str]:
    """Nothing but an extension happens to a job that succeeded; to a failed or cancelled one nothing but a retry."""
    ended: dict[int, str] = {}
    for row in rows.events:
        before = ended.get(row.job_id)
        if (row.kind == "retry" and before != "succeeded") or (row.kind == "extended" and before == "succeeded"):
            ended.pop(row.job_id, None)
        elif before and not row.kind.endswith("_too_late"):
            yield f"job {row.job_id}: {row.kind} after {before}"
        if row.kind in {*TERMINAL, "cancel"}:
            ended[row.job_id] = row.kind


def _places(rows: Rows) -> Iterator[str]:
    """A sweep runs no more than it may, and holds one live job of each config and replica."""
    running = Counter(job.sweep_id for job in rows.jobs if job.state == "running")
    for sweep in rows.sweeps:
        if sweep.max_parallel is not None and running[sweep.id] > sweep.max_parallel:
            yield f"sweep {sweep.id}: {running[sweep.id]} jobs run, {sweep.max_parallel} may"
    live = Counter((job.sweep_id, job.config_id, job.replica) for job in rows.jobs if job.state not in FREED)
    for place, count in live.items():
        if count > 1:
            yield f"{count} live jobs of {place}"
