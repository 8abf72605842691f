"""The checks of a soak's evaluations: no finding where all went well, one on each thing that must not be."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from benchmarks.invariants import read, violations
from benchmarks.light_evaluation import PLAN, expected_scores
from benchmarks.soak_evaluations import evaluations
from orchestrator import queue
from orchestrator.config.job import JobConfig
from tests.evaluation_shorthand import FACTS, take
from tests.queue_shorthand import claim, lose, point, result, sweep


def keep(folder: Path) -> str:
    """Write a checked folder of one file."""
    folder.mkdir(parents=True)
    (folder / "file").write_text("content")
    sums = {"file": hashlib.sha256(b"content").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "sha256": sums}))
    return str(folder)


def train(engine: Engine, home: Path) -> JobConfig:
    taken = claim(engine)
    queue.begin(engine, taken.lease, FACTS, 0)
    queue.record(engine, taken.lease, [point(100)])
    final = keep(home / str(taken.lease.job_id) / "final")
    queue.finish(engine, taken.lease, result(outcome="max_tokens", artifact_uri=final))
    assert isinstance(taken.config, JobConfig)
    return taken.config


def measure(engine: Engine, home: Path, config: JobConfig, families: tuple[str, ...]) -> queue.Lease:
    """Let the next evaluation measure some families."""
    lease = take(engine).lease
    queue.begin_evaluation(engine, lease, {})
    for family in families:
        found = [
            {"metric": metric, "variant": variant, "value": value}
            for (of, metric, variant), value in expected_scores(config).items()
            if of == family
        ]
        kept = keep(home / str(lease.job_id) / family) if family == "structure" else None
        assert queue.record_scores(engine, lease, family, found, wall_seconds=1.0, files_uri=kept)
    return lease


@pytest.fixture
def over(engine: Engine, tmp_path: Path) -> Engine:
    """Return a queue that is over: 3 measured the SAE of 1 in two attempts, 4 that of 2 in one."""
    queue.enqueue(engine, replace(sweep(2), evaluation=PLAN))
    first, second = train(engine, tmp_path), train(engine, tmp_path)
    measure(engine, tmp_path, first, PLAN.metrics[:2])
    queue.finish_evaluation(engine, measure(engine, tmp_path, second, PLAN.metrics), 1.0)
    lose(engine, 3)
    queue.finish_evaluation(engine, measure(engine, tmp_path, first, PLAN.metrics[2:]), 1.0)
    return engine


def told(engine: Engine) -> list[str]:
    found = evaluations(engine, are_light=True)
    return [*found.lost, *found.doubled, *found.altered]


def broken(engine: Engine) -> list[str]:
    return [*violations(read(engine.url.render_as_string(hide_password=False)))]


def test_nothing_is_told_where_a_lost_attempt_was_followed_by_another(over: Engine) -> None:
    assert (told(over), broken(over)) == ([], [])
    figures = evaluations(over, are_light=True).figures
    assert (figures["evaluations"], figures["evaluation attempts"], figures["families measured"]) == (2, 3, 8)
    assert (
        figures["evaluations measured by several attempts"],
        figures["evaluation attempts that did not end it"],
    ) == (
        1,
        1,
    )


def copied(table: str, **changed: str) -> str:
    """Return the statement that puts a row of evaluation 3 there once more, with other values."""
    columns = {
        "jobs": "id, kind, sae_id, sweep_id, config_id, config, replica, priority, state, desired, attempt, failures,"
        " preemptions, lost_in_row, not_before, created_at, stream_key, n_latents, d_model, k, max_tokens, seed,"
        " finished_at",
        "events": "job_id, at, kind, data",
    }[table]
    values = ", ".join(changed.get(name.strip(), name.strip()) for name in columns.split(","))
    which = "id = 3" if table == "jobs" else "job_id = 3 AND kind = 'measured'"
    return f"INSERT INTO {table} ({columns}) SELECT {values} FROM {table} WHERE {which}"


PLANTED = {
    "SAE of job 2 has no evaluation": (
        "DELETE FROM scores WHERE job_id = 4", "DELETE FROM measured_families WHERE job_id = 4",
        "DELETE FROM attempts WHERE job_id = 4", "DELETE FROM events WHERE job_id = 4", "DELETE FROM jobs WHERE id = 4",
    ),
    "evaluation 3 is failed": ("UPDATE jobs SET state = 'failed' WHERE id = 3",),
    "evaluation 3 is queued": ("UPDATE jobs SET state = 'queued', finished_at = NULL WHERE id = 3",),
    "evaluation 3 is cancelled": ("UPDATE jobs SET state = 'cancelled' WHERE id = 3",),
    "SAE 1 has two evaluations": (copied("jobs", id="9", replica="1"),),
    "evaluation 3 ended twice": ("UPDATE attempts SET outcome = 'evaluated' WHERE job_id = 3",),
    "evaluation 3 stored ablation 2 times": (copied("events"),),
    "evaluation 4 has other scores": ("UPDATE scores SET value = value + 1e-9 WHERE id = 9",),
    "evaluation 3 has other scores": ("DELETE FROM scores WHERE job_id = 3 AND metric = 'ablation'",),
}  # fmt: skip


@pytest.mark.parametrize("what", PLANTED)
def test_what_must_not_be_is_told(over: Engine, what: str) -> None:
    with over.execution_options(orch_write=True).begin() as connection:
        for statement in PLANTED[what]:
            connection.execute(text(statement))
    assert any(what in line for line in told(over)), told(over)


OF_THE_CHECKER = {
    "its SAE has 2 evaluations": copied("jobs", id="9", replica="1"),
    "job 3: is failed, and measured": "UPDATE jobs SET state = 'failed' WHERE id = 3",
    "job 3: is succeeded, and measured": "UPDATE measured_families SET state = 'failed'"
    " WHERE job_id = 3 AND family = 'ablation'",
    "job 3: is succeeded with 2 attempts that measured all": "UPDATE attempts SET outcome = 'evaluated'"
    " WHERE job_id = 3",
    "job 3: has scores of ['probes']": "UPDATE scores SET family = 'probes' WHERE job_id = 3 AND metric = 'ablation'",
    "job 3: has scores of another SAE": "UPDATE scores SET sae_id = 2 WHERE job_id = 3",
    "job 3: stored ablation 2 times": copied("events"),
    "job 3: files of structure": "UPDATE measured_families SET uri = '/nowhere' WHERE job_id = 3 AND uri IS NOT NULL",
}


@pytest.mark.parametrize("what", OF_THE_CHECKER)
def test_the_checker_tells_it_too(over: Engine, what: str) -> None:
    with over.execution_options(orch_write=True).begin() as connection:
        connection.execute(text(OF_THE_CHECKER[what]))
    assert any(what in line for line in broken(over)), broken(over)
