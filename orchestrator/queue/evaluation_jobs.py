"""Evaluation jobs come in: those asked for, and of a sweep that says so one for each SAE, as its training finishes."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Engine, Row, func, insert, select
from sqlalchemy.orm import Session

from orchestrator import saes
from orchestrator.database.engine import db_now, reading, transaction
from orchestrator.database.models import LIVE, Event, Job, ResultRow, SaeRow, SweepRow
from orchestrator.database.settled import dtype_of
from orchestrator.errors import ConfigError, SubjectError
from orchestrator.estimates.subject_files import model_sizes
from orchestrator.queue.fencing import clock, dialect_insert, log_events
from orchestrator.queue.workers import refuse_older
from orchestrator.saes import SaeEntry

if TYPE_CHECKING:
    from orchestrator.config.evaluation.evaluation import EvaluationConfig, EvaluationPlan

OF_IMPORTED = "evaluations"
"""The sweep of evaluations of SAEs that no job here trained; made when the first one is asked for."""
_PER_TRANSACTION = 500


class Asked(NamedTuple):
    """What became of a request to evaluate one SAE."""

    sae_id: int
    label: str
    job_id: int | None
    """Its job; None: it cannot be measured, or nothing was to be stored."""
    is_new: bool
    """Whether the job was not there already."""
    refused: str = ""
    """Why it cannot be measured."""
    hint: str = ""
    """What to do then."""


def evaluate(
    engine: Engine, plan: "EvaluationPlan", sae_ids: Sequence[int], *, again: bool = False, priority: int | None = None,
    dry_run: bool = False,
) -> list[Asked]:  # fmt: skip
    """Queue the evaluation of SAEs; what is there already is not queued again, unless `again` asks for a replica.

    An evaluation stands in the sweep of the job that trained its SAE, of an imported one in the sweep `evaluations`.
    `priority`: by default that of the training job. With `dry_run` nothing is stored.

    Raises:
        StateError: a worker of an earlier version lives, and would take an evaluation for a training.
        StorageError: the database did not answer; what was queued by then stays.
    """
    found: list[Asked] = []
    for start in range(0, len(sae_ids), _PER_TRANSACTION):
        with reading(engine) if dry_run else transaction(engine) as session:
            if not dry_run:
                refuse_older(session, "evaluate")
            request = _Request(session, plan, again=again, priority=priority, dry_run=dry_run)
            found += request.of(sae_ids[start : start + _PER_TRANSACTION])
    return found


def after_training(session: Session, job_id: int) -> int | None:
    """Queue what the sweep of a job asks to be measured of its SAE, where it does; return the new job.

    In the transaction that stores the job's result. What cannot be measured is an event of the job, and no error.
    """
    # The lock: an enqueue that gives the sweep another plan comes before this, or sees this job as succeeded.
    of_job = select(Job.sweep_id).where(Job.id == job_id).scalar_subquery()
    text = session.scalar(select(SweepRow.evaluation).where(SweepRow.id == of_job).with_for_update(read=True))
    sae_id = session.scalar(select(SaeRow.id).where(SaeRow.job_id == job_id)) if text else None
    if text is None or sae_id is None:
        return None
    from orchestrator.config.evaluation.evaluation import EvaluationPlan

    try:
        plan = EvaluationPlan.model_validate_json(text)
    except ValueError as error:  # a version with other families wrote it
        log_events(session, "not_evaluated", [job_id], reason=str(error).partition("\n")[0])
        return None
    (asked,) = _Request(session, plan).of([sae_id])
    if asked.refused:
        log_events(session, "not_evaluated", [job_id], reason=asked.refused)
    return asked.job_id if asked.is_new else None


def evaluate_trained(engine: Engine, sweep_id: int, plan: "EvaluationPlan", *, priority: int | None) -> list[int]:
    """Queue a plan for the SAEs that a sweep has trained; return the new jobs. `priority`: by default their jobs'."""
    saes.record_missing(engine)
    query = select(SaeRow.id).join(Job, Job.id == SaeRow.job_id).join(ResultRow, ResultRow.job_id == Job.id)
    query = query.where(Job.sweep_id == sweep_id, Job.state == "succeeded", Job.hidden.is_(None)).order_by(SaeRow.id)
    with reading(engine) as session:
        ids = session.scalars(query).all()
    return [one.job_id for one in evaluate(engine, plan, ids, priority=priority) if one.is_new and one.job_id]


class _Request:
    """One plan for some SAEs, within a transaction."""

    def __init__(
        self, session: Session, plan: "EvaluationPlan", *, again: bool = False, priority: int | None = None,
        dry_run: bool = False,
    ) -> None:  # fmt: skip
        self._session, self._plan, self._again, self._priority = session, plan, again, priority
        self._dry_run = dry_run
        self._sizes = cache(model_sizes)  # files of a model are read once for all SAEs of it

    def of(self, sae_ids: Sequence[int]) -> list[Asked]:
        """Queue the evaluation of each SAE; those that are gone are left out."""
        entries = {entry.id: entry for entry in saes.read(self._session, sae_ids)}
        columns: list[Any] = [Job.id, Job.sweep_id, Job.config, Job.config_id, Job.priority, Job.state]
        of_jobs = select(*columns).where(Job.id.in_([one.job_id for one in entries.values() if one.job_id]))
        trained = {row.id: row for row in self._session.execute(of_jobs)}
        # By number: two transactions that insert the same places in another order would wait for each other.
        asked = {i: self._ask(entries[i], trained.get(entries[i].job_id or 0)) for i in sorted(entries)}
        return [asked[i] for i in sae_ids if i in asked]

    def _ask(self, entry: SaeEntry, job: Row[Any] | None) -> Asked:
        if job is not None and job.state != "succeeded":
            return Asked(entry.id, entry.label, None, False, "it is trained further: evaluate it when that has ended")
        try:
            config = self._config(entry, job)
        except (ConfigError, SubjectError) as error:
            return Asked(entry.id, entry.label, None, False, error.message, error.hint)
        sweep_id = self._sweep_of_imported() if job is None else job.sweep_id
        replica = 0
        if sweep_id is not None:
            same = (Job.sweep_id == sweep_id, Job.config_id == config.config_id)
            there = self._session.scalar(select(Job.id).where(*same, LIVE).limit(1))
            if there is not None and not self._again:
                return Asked(entry.id, entry.label, there, False)
            if self._again:
                replica = 1 + (self._session.scalar(select(func.max(Job.replica)).where(*same)) or 0) if there else 0
        if self._dry_run or sweep_id is None:
            return Asked(entry.id, entry.label, None, True)
        priority = self._priority if self._priority is not None else job.priority if job is not None else 0
        values = _values(entry, config) | {"sweep_id": sweep_id, "replica": replica, "priority": priority}
        return Asked(entry.id, entry.label, *self._insert(values))

    def _config(self, entry: SaeEntry, job: Row[Any] | None) -> "EvaluationConfig":
        from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef
        from orchestrator.config.evaluation.of_sae import evaluation_of
        from orchestrator.config.validation import read_stored

        trained = job and read_stored(job.config, job.config_id).settled(dtype_of(self._session, job.id))
        ref = EvaluatedSaeRef(id=entry.id, attempt=entry.attempt)
        return evaluation_of(self._plan, ref, entry.facts, trained, self._sizes)

    def _sweep_of_imported(self) -> int | None:
        there = select(SweepRow.id).where(SweepRow.name == OF_IMPORTED)
        if not self._dry_run:
            make = dialect_insert(self._session, SweepRow).on_conflict_do_nothing(index_elements=["name"])
            values = {"name": OF_IMPORTED, "text": "", "labels": {}, "max_failures": 3, "paused": False}
            self._session.execute(make.values(**values, created_at=clock(self._session)))
        return self._session.scalar(there)

    def _insert(self, values: dict[str, Any]) -> tuple[int | None, bool]:
        """Insert a job, unless another transaction just did; return its id, and whether it is new."""
        place = ["sweep_id", "config_id", "replica"]
        make = dialect_insert(self._session, Job).values(**values)
        new = make.on_conflict_do_nothing(index_elements=place, index_where=LIVE).returning(Job.id)
        job_id: int | None = self._session.scalar(new)
        if job_id is None:
            same = [getattr(Job, name) == values[name] for name in place]
            return self._session.scalar(select(Job.id).where(*same, LIVE)), False
        self._session.execute(insert(Event).values(job_id=job_id, at=db_now(), kind="enqueued"))
        return job_id, True


def _values(entry: SaeEntry, config: "EvaluationConfig") -> dict[str, Any]:
    counts = dict.fromkeys(("attempt", "failures", "preemptions", "lost_in_row"), 0)
    return counts | {
        "kind": "evaluate",
        "sae_id": entry.id,
        "config_id": config.config_id,
        "config": config.canonical_json(),
        "n_latents": entry.facts.n_latents,
        "d_model": entry.facts.d_model,
        "k": entry.facts.k or 0,
        "max_tokens": config.heldout_tokens,
        "seed": config.plan.seed,
        "state": "queued",
        "desired": "run",
        "not_before": 0.0,
        "created_at": db_now(),
        "stream_key": config.stream_key,
    }
