"""Finished jobs by the thousand: with little in them, or as they were measured, with result, counts and curve."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, insert, text

from orchestrator.config.validation import parse
from orchestrator.database import models as m
from orchestrator.scaling.types import JobMeasurement

_NUMBERS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT :first UNION ALL SELECT i + 1 FROM n WHERE i < :last) {insert} FROM n",
    "postgresql": "{insert} FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) AS n(i)",
}
_INSERTS = (
    "INSERT INTO jobs (id, sweep_id, config_id, replica, config, n_latents, d_model, k, max_tokens, seed, lr, priority,"
    " state, desired, attempt, failures, preemptions, lost_in_row, not_before, created_at, finished_at, stream_key)"
    " SELECT i, :sweep, 'config-' || i, 0, :config, 64, 32, 8, 1000, i, 0.01, 0,"
    " CASE WHEN i % 100 = 0 THEN 'failed' ELSE 'succeeded' END, 'run', 1, 0, 0, 0, 0.0, 1.0, 2.0, 'stream-' || i / 8",
    "INSERT INTO attempts (job_id, attempt, token, worker, host, pid, device, started_at, ended_at, outcome)"
    " SELECT i, 1, 'token-' || i, 'worker', 'host', 1, 'cpu', 1.0, 2.0, 'max_tokens'",
    "INSERT INTO results (job_id, attempt, token, outcome, tokens_seen) SELECT i, 1, 'token-' || i, 'max_tokens', 1000",
    "INSERT INTO events (job_id, at, kind) SELECT i, 1.0, 'enqueued'",
    "INSERT INTO checkpoints (job_id, tokens_seen, attempt, uri, sha256, created_at)"
    " SELECT i, 1000, 1, 'at', 'sum', 2.0",
    "INSERT INTO convergence (job_id, epsilon, tokens) SELECT i, 0.01, 500.0",
    "INSERT INTO curve_points (job_id, tokens_seen, attempt, fvu) SELECT i, 500, 1, 0.5",
    "INSERT INTO curve_points (job_id, tokens_seen, attempt, fvu) SELECT i, 1000, 1, 0.4",
)


def finished_jobs(engine: Engine, number: int) -> None:
    """Add so many jobs that are over, in a sweep of their own."""
    unlimited = engine.execution_options(orch_write=True)
    with unlimited.begin() as connection:
        if engine.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        first = (connection.scalar(text("SELECT max(id) FROM jobs")) or 0) + 1
        values = {"first": first, "last": first + number - 1}
        name = f"finished-{connection.scalar(text('SELECT count(*) FROM sweeps'))}"
        values |= {
            "sweep": _sweep(connection, name),
            "config": connection.scalar(text("SELECT config FROM jobs LIMIT 1")),
        }
        for insert in _INSERTS:
            own = {name: value for name, value in values.items() if f":{name}" in insert + ":first:last"}
            connection.execute(text(_NUMBERS[engine.name].format(insert=insert)), own)
        if engine.name == "postgresql":
            connection.execute(text("SELECT setval(pg_get_serial_sequence('jobs', 'id'), (SELECT max(id) FROM jobs))"))
    _settle(engine)


def _sweep(connection: Connection, name: str) -> int:
    made = (
        "INSERT INTO sweeps (name, text, labels, max_failures, paused, created_at)"
        " VALUES (:name, '', '{}', 3, false, 1.0) RETURNING id"
    )
    return int(connection.execute(text(made), {"name": name}).scalar_one())


def _settle(engine: Engine) -> None:
    """Do what autovacuum does of itself within a minute; SQLite keeps no statistics unless it is told to."""
    if engine.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SET statement_timeout = 0"))
            # VACUUM marks as visible to all only what is on the disk, and its own commits must not be in between.
            connection.execute(text("SET synchronous_commit = on"))
            connection.execute(text("CHECKPOINT"))
            connection.execute(text("VACUUM ANALYZE"))
            connection.invalidate()


def measured_jobs(engine: Engine, rows: Sequence[JobMeasurement], *, sweep: str) -> None:
    """Add a sweep of finished jobs with their curves, as they were measured; all of one subject, text and width."""
    with engine.execution_options(orch_write=True).begin() as connection:
        sweep_id = _sweep(connection, sweep)
        last = connection.scalar(text("SELECT coalesce(max(id), 0) FROM jobs")) or 0
        ids = dict(enumerate(rows, start=last + 1))
        for table, values in _tables(ids, sweep_id).items():
            connection.execute(insert(m.Table.metadata.tables[table]), values)
        if engine.name == "postgresql":
            connection.execute(text("SELECT setval(pg_get_serial_sequence('jobs', 'id'), (SELECT max(id) FROM jobs))"))
    _settle(engine)


def _tables(rows: dict[int, JobMeasurement], sweep_id: int) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    counters = dict.fromkeys(("replica", "priority", "failures", "preemptions", "lost_in_row", "not_before"), 0)
    for job_id, row in rows.items():
        config = parse({"sae": {"n_latents": row.n_latents, "k": row.k}, "training": {"seed": row.seed}})
        mine = {"job_id": job_id, "attempt": 1}
        same = {"k": row.k, "n_latents": row.n_latents, "d_model": row.d_model, "lr": row.lr}
        found["jobs"].append(
            {"id": job_id, "sweep_id": sweep_id, "config_id": config.config_id, "config": config.canonical_json(),
             "max_tokens": config.training.max_tokens, "seed": row.seed, "state": "succeeded", "desired": "run",
             "created_at": 1.0, "finished_at": 2.0, "attempt": 1, **counters, **same}
        )  # fmt: skip
        facts = {**same, "device": "cpu", "subject": {"site": row.hook, "parameters_run": row.subject_size}}
        found["attempts"].append(
            {"token": f"t{job_id}", "worker": "w", "host": "h", "pid": 1, "device": "cpu", "started_at": 1.0,
             "ended_at": 2.0, "outcome": row.outcome, "facts": facts, **mine}
        )  # fmt: skip
        found["results"].append(
            {"token": f"t{job_id}", "outcome": row.outcome, "tokens_seen": row.tokens_seen, "fvu": row.fvu,
             "untrained_fvu": row.untrained_fvu, "l_inf": row.l_inf, "l_inf_se": row.l_inf_se, "wall_seconds": 1.0,
             **mine}
        )  # fmt: skip
        found["convergence"] += [
            {"job_id": job_id, "epsilon": epsilon, "tokens": tokens}
            for epsilon, tokens in row.tokens_to_convergence.items()
        ]
        found["curve_points"] += [{**point._asdict(), "l0": float(row.k), **mine} for point in row.curve]
    return found
