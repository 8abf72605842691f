"""Enqueue a sweep: its jobs start when all are there; configs that it holds already are skipped and counted.

Up to `ROWS_AT_ONCE` jobs come in by one transaction. More take several, so that nobody else waits long for the lock;
`SweepRow.arriving_after` keeps workers from the new jobs until the last transaction, which clears it. A submission that
was cut off therefore leaves jobs that do not start: the next enqueue of the sweep adds what is missing, and ends it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, func, insert, literal, select, update
from sqlalchemy.orm import Session

from orchestrator.database.engine import db_now, transaction
from orchestrator.database.many_rows import among, insert_rows
from orchestrator.database.models import LIVE, Event, Job, SweepRow
from orchestrator.errors import ConfigError
from orchestrator.formatting import named
from orchestrator.queue.evaluation_jobs import evaluate_trained
from orchestrator.queue.fencing import clock, dialect_insert
from orchestrator.queue.types import Enqueued
from orchestrator.queue.workers import refuse_older

if TYPE_CHECKING:
    from orchestrator.config.job import JobConfig
    from orchestrator.sweep.sweep import Sweep

ROWS_AT_ONCE = 5_000
"""Jobs of one transaction."""

_Place = tuple[str, int]
"""Config id and replica: what tells the jobs of a sweep apart."""


def enqueue(engine: Engine, sweep: "Sweep", *, allow_duplicate: bool = False, priority: int | None = None) -> Enqueued:
    """Put a sweep's configs into the queue; to a sweep of that name only what is new is added.

    `priority`: of the new jobs, by default the sweep's. Where the sweep says what is measured of its SAEs, the
    evaluations of those that it has trained already are queued too.

    Raises:
        ConfigError: the sweep would hold more jobs than its run_cap; nothing was added.
        StateError: an evaluation is asked for while a worker lives whose version has none; nothing was added.
        StorageError: the database did not answer. What was added starts when the same sweep is enqueued again.
    """
    configs = sweep.configs
    _check_lenses(configs)
    submission = _Submission(sweep, allow_duplicate, sweep.priority if priority is None else priority)
    job_ids: list[int | None] = []
    sweep_id = 0
    for start in range(0, max(1, len(configs)), ROWS_AT_ONCE):
        part = configs[start : start + ROWS_AT_ONCE]
        rows = [_row(config) for config in part]
        with transaction(engine) as session:
            sweep_id = _upsert_sweep(session, sweep)
            if not start and sweep.evaluation is not None:
                refuse_older(session, "evaluate")
            if not start:
                submission.begin(session, sweep_id)
            job_ids += submission.add(session, sweep_id, rows)
            if start + ROWS_AT_ONCE >= len(configs):
                submission.end(session, sweep_id, job_ids)
    if sweep.evaluation is None:
        return Enqueued(sweep_id, tuple(job_ids))
    evaluations = evaluate_trained(engine, sweep_id, sweep.evaluation, priority=priority)
    return Enqueued(sweep_id, tuple(job_ids), tuple(evaluations))


class _Submission:
    """One call of `enqueue`: what it adds, one transaction after another."""

    def __init__(self, sweep: "Sweep", allow_duplicate: bool, priority: int) -> None:
        self._sweep, self._allow_duplicate, self._priority = sweep, allow_duplicate, priority
        self._arrived: Counter[str] = Counter()
        """Of each config, the replicas that a submission before this one left when it was cut off: they are its own."""

    def begin(self, session: Session, sweep_id: int) -> None:
        """Take up what was cut off, and refuse what would be too much, before anything is added."""
        after = session.scalar(select(SweepRow.arriving_after).where(SweepRow.id == sweep_id))
        if self._allow_duplicate and after is not None:
            left = select(Job.config_id).where(Job.sweep_id == sweep_id, Job.id > after, LIVE)
            self._arrived = Counter(session.scalars(left))
        if self._sweep.limits.run_cap is not None:
            ids = [config.config_id for config in self._sweep.configs]
            _respect_cap(session, sweep_id, self._sweep, len(self._new_positions(session, sweep_id, ids)))

    def add(self, session: Session, sweep_id: int, rows: Sequence[dict[str, Any]]) -> list[int | None]:
        """Add those of some jobs that are new; return their ids, None for the others."""
        ids = [row["config_id"] for row in rows]
        new = self._new_positions(session, sweep_id, ids)
        if self._allow_duplicate:
            self._arrived -= Counter(id_ for at, id_ in enumerate(ids) if at not in new)
        fresh = [rows[at] | {"replica": replica} for at, replica in new.items()]
        placed = _insert(session, fresh, sweep_id=sweep_id, priority=self._priority)
        return [placed[ids[at], new[at]] if at in new else None for at in range(len(ids))]

    def end(self, session: Session, sweep_id: int, job_ids: Sequence[int | None]) -> None:
        """Let the jobs start."""
        skipped = job_ids.count(None)
        counts = {"added": len(job_ids) - skipped, "skipped": skipped}
        session.execute(update(SweepRow).where(SweepRow.id == sweep_id).values(arriving_after=None))
        session.execute(insert(Event).values(sweep_id=sweep_id, at=db_now(), kind="sweep_enqueued", data=counts))

    def _new_positions(self, session: Session, sweep_id: int, ids: Sequence[str]) -> dict[int, int]:
        """Return the replica number of each position that is to be added."""
        query = select(Job.config_id, func.max(Job.replica)).where(Job.sweep_id == sweep_id).group_by(Job.config_id)
        if len(ids) <= ROWS_AT_ONCE:  # else the whole sweep is read
            query = query.where(among(session, Job.config_id, ids))
        if not self._allow_duplicate:
            live = set(session.scalars(query.where(LIVE)))
            first = {id_: at for at, id_ in reversed(list(enumerate(ids)))}
            return {at: 0 for at, id_ in enumerate(ids) if id_ not in live and first[id_] == at}
        ever = defaultdict(lambda: -1, {row[0]: row[1] for row in session.execute(query)})
        there, new = self._arrived.copy(), dict[int, int]()
        for at, id_ in enumerate(ids):
            if there[id_]:
                there[id_] -= 1
            else:
                ever[id_] += 1
                new[at] = ever[id_]
        return new


def _check_lenses(configs: Sequence["JobConfig"]) -> None:
    """See that lenses are named by content ids, as `enqueueing.with_lenses` leaves them: a name may change hands."""
    from orchestrator.config.lens.facts import is_content_id

    assert all(config.sae.lens is None or is_content_id(config.sae.lens) for config in configs), "names are resolved"


def _row(config: "JobConfig") -> dict[str, Any]:
    lr = config.optimizer.lr
    return {
        "config_id": config.config_id,
        "config": config.canonical_json(),
        "n_latents": config.sae.n_latents,
        "k": config.sae.k,
        "max_tokens": config.training.max_tokens,
        "seed": config.training.seed,
        "lr": None if lr == "auto" else lr,
        "stream_key": config.stream_key,
    }


def _insert(session: Session, rows: list[dict[str, Any]], *, sweep_id: int, priority: int) -> dict[_Place, int]:
    """Insert jobs and their first event, which have arrived when the submission ends; return the ids."""
    if not rows:
        return {}
    # The sweep's row is locked, so that all of its ids above the last one of any sweep are those of this transaction.
    last = session.scalar(select(func.max(Job.id))) or 0
    mine = (Job.sweep_id == sweep_id, Job.id > last)
    now = clock(session)
    same = {
        "sweep_id": sweep_id,
        "priority": priority,
        "state": "queued",
        "desired": "run",
        "created_at": now,
        "not_before": 0.0,
    }
    same |= dict.fromkeys(("attempt", "failures", "preemptions", "lost_in_row"), 0)
    arriving = update(SweepRow).where(SweepRow.id == sweep_id, SweepRow.arriving_after.is_(None))
    session.execute(arriving.values(arriving_after=last))
    insert_rows(session, Job.metadata.tables["jobs"], rows, same)
    fresh = select(Job.id, literal(now), literal("enqueued")).where(*mine)
    session.execute(insert(Event).from_select(["job_id", "at", "kind"], fresh))
    added = select(Job.config_id, Job.replica, Job.id).where(*mine)
    return {(row.config_id, row.replica): row.id for row in session.execute(added)}


def _upsert_sweep(session: Session, sweep: "Sweep") -> int:
    from orchestrator.config.job import canonical_text

    values = {
        "text": sweep.text,
        "labels": dict(sweep.labels),
        "max_parallel": sweep.limits.max_parallel,
        "run_cap": sweep.limits.run_cap,
        "max_failures": sweep.limits.max_failures,
        "evaluation": sweep.evaluation and canonical_text(sweep.evaluation.model_dump(mode="json")),
    }
    make = dialect_insert(session, SweepRow).on_conflict_do_nothing(index_elements=["name"])
    session.execute(make.values(name=sweep.name, paused=False, created_at=clock(session), **values))
    # The row's lock orders two enqueues of one sweep, so that the second sees what the first added.
    fresh = update(SweepRow).where(SweepRow.name == sweep.name).values(**values).returning(SweepRow.id)
    return int(session.execute(fresh).scalar_one())


def _respect_cap(session: Session, sweep_id: int, sweep: "Sweep", adding: int) -> None:
    cap = sweep.limits.run_cap
    there = (Job.sweep_id == sweep_id, Job.hidden.is_distinct_from("deleted"), Job.kind == "train")
    held = session.scalar(select(func.count()).select_from(Job).where(*there)) or 0
    if cap is not None and adding and held + adding > cap:
        raise ConfigError(
            f"sweep {sweep.name!r}: {named(held, 'job')} and {adding} new are more than run_cap = {cap}",
            hint="Raise limits.run_cap in the sweep file, or give the new jobs a sweep of their own.",
        )
