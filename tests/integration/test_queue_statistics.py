"""Figures of the whole queue: `orch queue stats` and `orch metrics`, against a day that is known."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, update

from orchestrator import queue, results
from orchestrator.cli.main import run
from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import Attempt, LeaseRow
from orchestrator.database.schema import open_database
from orchestrator.settings import Settings
from tests.lens_shorthand import begin_lens, queue_lens, take_lens, train_lens
from tests.queue_shorthand import claim, enqueue, fail, lose, ref, result
from tests.unit.orchestrator.cli.commands.test_metrics import parse
from tests.worker_shorthand import items, let_commands_reach, report

Capture = pytest.CaptureFixture[str]
HOUR = 3600.0


@pytest.fixture
def engine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    let_commands_reach(settings, monkeypatch)
    engine = open_database(settings)
    yield engine
    engine.dispose()


def a_day(engine: Engine) -> None:
    """Let eight attempts have ended in each of the ways there are, and two run."""
    enqueue(engine, 8)
    done = claim(engine).lease
    queue.begin(engine, done, {}, 0)
    queue.heartbeat(engine, done, lease_seconds=60, tokens_seen=1000)
    queue.finish(engine, done, result())
    fail(engine, claim(engine).lease, retry=False)
    first = claim(engine).lease
    queue.checkpointed(engine, first, ref(300))
    queue.release(engine, first)
    again = claim(engine).lease
    lose(engine, again.job_id)
    queue.cancel(engine, [4])
    runs = claim(engine).lease
    queue.begin(engine, runs, {}, 300)
    queue.heartbeat(engine, runs, lease_seconds=60, tokens_seen=500, tokens_per_second=250.0)
    claim(engine)


def test_figures_of_the_queue(engine: Engine, capsys: Capture) -> None:
    assert run(["queue", "stats"]) == 0
    assert "none is queued" in capsys.readouterr().out
    a_day(engine)
    with transaction(engine) as session:
        session.execute(update(LeaseRow).where(LeaseRow.job_id == 3).values(expires_at=db_now() + 30))
    found = results.stats(engine)
    assert found.jobs == {"queued": 3, "running": 2, "paused": 0, "succeeded": 1, "failed": 1, "cancelled": 1}
    assert found.running == {"cpu": 2}
    assert found.attempts == {
        "results": 1, "evaluations": 0, "lenses": 0, "failures": 1, "preemptions": 1, "lost": 1, "machine": 0,
        "other": 0,
    }  # fmt: skip
    assert found.tokens_trained == 1200
    assert found.last_hour == found.attempts | {"tokens": 1000}
    assert found.tokens_per_second == 250.0
    assert found.oldest_queued_age is not None
    assert found.lease_slack is not None
    assert 0 < found.lease_slack <= 30
    assert run(["queue", "stats"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["queue", "open"]
    assert lines[3].split(None, 1)[1] == "2 on cpu, 250 tokens/s"
    assert lines[4].split(None, 2)[2] == "1 result, 1 failure, 1 preemption, 1 lost, 1.00k tokens"
    queue.pause_queue(engine)
    assert run(["queue", "stats", "-o", "json"]) == 0
    (item,) = items(capsys)
    assert (item["jobs"]["queued"], item["tokens_trained"], item["paused_at"][-1]) == (3, 1200, "Z")


def test_the_last_hour_is_not_for_ever(engine: Engine) -> None:
    a_day(engine)
    with transaction(engine) as session:
        session.execute(update(Attempt).where(Attempt.job_id == 1).values(ended_at=db_now() - HOUR - 1))
    found = results.stats(engine)
    assert (found.last_hour["results"], found.last_hour["tokens"], found.attempts["results"]) == (0, 0, 1)


def test_lenses_are_no_results_of_saes_nor_their_tokens(engine: Engine, capsys: Capture) -> None:
    a_day(engine)
    before = results.stats(engine)
    queue_lens(engine)
    queue_lens(engine, heldout_tokens=512)
    queue.pause(engine, [row.id for row in results.jobs(engine, states=["queued"])])
    done = train_lens(engine)
    runs = take_lens(engine).lease
    begin_lens(engine, runs)
    queue.heartbeat(engine, runs, lease_seconds=60, tokens_seen=700, tokens_per_second=90.0)
    found = results.stats(engine)
    assert results.attempts(engine, done)[0].outcome == "converged"
    assert found.attempts == before.attempts | {"lenses": 1}
    assert found.last_hour == before.last_hour | {"lenses": 1}
    assert (found.tokens_trained, found.tokens_per_second) == (before.tokens_trained, before.tokens_per_second)
    assert run(["queue", "stats"]) == 0
    assert "1 result, 1 lens job, 1 failure, 1 preemption, 1 lost, 1.00k tokens" in capsys.readouterr().out
    assert run(["metrics"]) == 0
    told = parse(capsys.readouterr().out)
    assert (told["orch_results_total", ""], told["orch_lenses_trained_total", ""]) == (1, 1)


def test_sums_over_attempts_read_an_index_alone(sqlite_settings: Settings) -> None:
    engine = open_database(sqlite_settings)
    said: list[tuple[str, Any]] = []
    event.listen(engine, "before_cursor_execute", lambda *seen: said.append((seen[2], seen[3])))
    results.stats(engine)
    asked = [pair for pair in said if "FROM attempts" in pair[0] and "GROUP BY" in pair[0]]
    assert len(asked) == 2
    with engine.connect() as connection:
        for statement, values in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
            assert "USING COVERING INDEX ix_attempts_ended" in plan[0][3]
    engine.dispose()


def test_metrics(engine: Engine, capsys: Capture) -> None:
    assert run(["metrics"]) == 0
    empty = parse(capsys.readouterr().out)
    assert empty["orch_jobs", "queued"] == 0
    assert ("orch_lease_slack_seconds", "") not in empty
    a_day(engine)
    report(engine, "w1", device='odd "device"\\')
    queue.pause_queue(engine)
    assert run(["metrics"]) == 0
    said = capsys.readouterr()
    found = parse(said.out)
    assert said.err == ""
    assert (found["orch_jobs", "queued"], found["orch_jobs", "running"], found["orch_leases", "cpu"]) == (3, 2, 2)
    assert (found["orch_workers", "at work"], found["orch_workers", "lost"]) == (1, 0)
    names = ("orch_results_total", "orch_failures_total", "orch_preemptions_total", "orch_lost_total")
    assert [found[name, ""] for name in names] == [1, 1, 1, 1]
    assert (found["orch_tokens_trained_total", ""], found["orch_tokens_per_second", ""]) == (1200, 250)
    assert found["orch_queue_paused", ""] == 1
    assert found["orch_oldest_queued_age_seconds", ""] >= 0
    assert 0 < found["orch_lease_slack_seconds", ""] <= 60
