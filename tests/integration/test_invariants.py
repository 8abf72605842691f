"""The check of invariants after a soak: no finding on a sound queue, one on each violation."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from benchmarks.invariants import read, violations
from orchestrator import queue
from orchestrator.queue import CheckpointRef
from tests.lens_shorthand import queue_lens, train_lens
from tests.queue_shorthand import claim, enqueue, lose, point, result


def write(folder: Path) -> str:
    """Write a folder as the trainer does; return the sum of its manifest."""
    folder.mkdir(parents=True)
    (folder / "state").write_text("weights")
    sums = {"state": hashlib.sha256(b"weights").hexdigest()}
    manifest = json.dumps({"format": 1, "sha256": sums})
    (folder / "manifest.json").write_text(manifest)
    return hashlib.sha256(manifest.encode()).hexdigest()


def save(engine: Engine, lease: queue.Lease, home: Path, tokens: int) -> None:
    folder = home / str(lease.job_id) / str(lease.attempt) / str(tokens)
    queue.checkpointed(engine, lease, CheckpointRef(str(folder), tokens, write(folder)))


@pytest.fixture
def over(engine: Engine, tmp_path: Path) -> Engine:
    """Return a queue that is over: job 1 lost a worker, job 2 was cancelled while it ran, 3 while it waited."""
    enqueue(engine, 3)
    first = claim(engine).lease
    queue.begin(engine, first, {}, 0)
    queue.record(engine, first, [point(64), point(128)])
    save(engine, first, tmp_path, 64)
    save(engine, first, tmp_path, 128)
    queue.record(engine, first, [point(192)])
    lose(engine, 1)
    second = claim(engine).lease
    queue.begin(engine, second, {}, 128)
    queue.record(engine, second, [point(192), point(256)])
    save(engine, second, tmp_path, 256)
    write(tmp_path / "1" / "2" / "final")
    uri = str(tmp_path / "1" / "2" / "final")
    queue.finish(engine, second, result(tokens_seen=256, artifact_uri=uri))
    running = claim(engine).lease
    queue.cancel(engine, [2, 3])
    queue.release(engine, running, outcome="cancelled")
    return engine


def found(engine: Engine) -> list[str]:
    return [*violations(read(engine.url.render_as_string(hide_password=False)))]


def test_a_sound_queue_is_sound(over: Engine) -> None:
    assert found(over) == []


OLD = "attempt = 1 AND job_id = 1"
PLANTED = {
    "1 jobs in": "UPDATE events SET data = '{\"added\": 1}' WHERE kind = 'sweep_enqueued'",
    "entered the queue 2 times": "INSERT INTO events (job_id, at, kind) VALUES (3, 0, 'enqueued')",
    "is queued, not over": "UPDATE jobs SET state = 'queued', finished_at = NULL WHERE id = 3",
    "is succeeded with 0 results": "DELETE FROM results",
    "is cancelled with 1 results": "UPDATE jobs SET state = 'cancelled' WHERE id = 1",
    "is succeeded with 2 attempts with a result": f"UPDATE attempts SET outcome = 'converged' WHERE {OLD}",
    "is succeeded with 2 successes told": "INSERT INTO events (job_id, at, kind) VALUES (1, 9e9, 'succeeded')",
    "has the result of attempt 1": "UPDATE results SET attempt = 1",
    "did not make its result": "UPDATE results SET token = 'another'",
    "has attempts [2], says it had 2": f"DELETE FROM attempts WHERE {OLD}",
    "has attempts [1, 2], says it had 3": "UPDATE jobs SET attempt = 3 WHERE id = 1",
    "attempt 1 has no end": f"UPDATE attempts SET ended_at = NULL WHERE {OLD}",
    "attempt 2 began before attempt 1 had ended": f"UPDATE attempts SET ended_at = 9e9 WHERE {OLD}",
    "two attempts share a token": "UPDATE attempts SET token = 'one' WHERE job_id = 1",
    "a lease of attempt 1 is left": "INSERT INTO leases (job_id, attempt, token, expires_at, tokens_seen, progress_at)"
    " VALUES (2, 1, 't', 0, 0, 0)",
    "the curve goes back": "INSERT INTO curve_points (job_id, tokens_seen, attempt) VALUES (1, 300, 1)",
    "is beyond where its successor began": "UPDATE curve_points SET attempt = 1 WHERE tokens_seen = 192",
    "before it began": "UPDATE attempts SET tokens_start = 192 WHERE attempt = 2",
    "the curve goes on after the result": "INSERT INTO curve_points (job_id, tokens_seen, attempt) VALUES (1, 512, 2)",
    "began after its cancel was asked": "INSERT INTO attempts (job_id, attempt, token, worker, host, pid, device,"
    " started_at, ended_at) VALUES (2, 2, 'u', 'w', 'h', 1, 'cpu', 8e9, 9e9)",
    "is not the one that was recorded": "UPDATE checkpoints SET sha256 = 'other' WHERE tokens_seen = 256",
    "checkpoint at 128 tokens": "UPDATE checkpoints SET uri = '/nowhere' WHERE tokens_seen = 128",
    "has no final artifact": "UPDATE results SET artifact_uri = NULL",
    "final artifact: /nowhere is not whole": "UPDATE results SET artifact_uri = '/nowhere'",
}


@pytest.mark.parametrize("told", PLANTED)
def test_a_broken_promise_is_told(over: Engine, told: str) -> None:
    with over.execution_options(orch_write=True).begin() as connection:
        connection.execute(text(PLANTED[told]))
    assert any(told in line for line in found(over)), found(over)


def test_a_result_without_a_job_is_told(over: Engine) -> None:
    """No database of ours lets this in; the checker does not rely on that."""
    db = read(over.url.render_as_string(hide_password=False))
    del db.jobs[1]
    told = [*violations(db)]
    assert "job 1: results without a job" in told
    assert "sweep 1: 3 jobs in, 2 there" in told


def test_two_results_of_one_job_are_told(over: Engine) -> None:
    db = read(over.url.render_as_string(hide_password=False))
    db.results[1].append(db.results[1][0])
    assert "job 1: is succeeded with 2 results" in [*violations(db)]


@pytest.mark.parametrize("file", ["state", "manifest.json"])
@pytest.mark.parametrize("name", ["256", "final"])
def test_a_damaged_folder_is_told(over: Engine, tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / "1" / "2" / name / file).write_text("{}")
    assert any(name in line for line in found(over))


def test_checkpoints_before_the_newest_two_may_be_gone(engine: Engine, tmp_path: Path) -> None:
    enqueue(engine, 1)
    lease = claim(engine).lease
    queue.begin(engine, lease, {}, 0)
    for tokens in (64, 128, 192):
        save(engine, lease, tmp_path, tokens)
    queue.finish(engine, lease, result(outcome="diverged", tokens_seen=192, artifact_uri=None))
    oldest = tmp_path / "1" / "1" / "64"
    for file in oldest.iterdir():
        file.unlink()
    assert any("checkpoint at 64" in line for line in found(engine)), "half of one is worse than none"
    oldest.rmdir()
    assert found(engine) == []


def test_the_program_says_it_and_ends_with_1(over: Engine) -> None:
    command = [sys.executable, "-m", "benchmarks.invariants", over.url.render_as_string(hide_password=False)]
    good = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    assert "3 jobs, 3 attempts, 1 results" in good.stdout
    with over.execution_options(orch_write=True).begin() as connection:
        connection.execute(text("DELETE FROM results"))
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "BROKEN: job 1: is succeeded with 0 results" in bad.stdout


LENS_PLANTED = {
    "has 0 lenses": "DELETE FROM lenses",
    "is succeeded with a lens of attempt 7": "UPDATE lenses SET attempt = 7",
    "its lens: ": "UPDATE lenses SET uri = '/away'",
    "has no lens": "UPDATE lenses SET uri = NULL",
    "another number of attempts that made a lens": "UPDATE attempts SET outcome = 'crashed' WHERE job_id = 4",
    "a point at 2048, before it began": "UPDATE attempts SET tokens_start = 4000 WHERE job_id = 4",
}


@pytest.fixture
def with_lens(over: Engine, tmp_path: Path) -> Engine:
    """The same queue, and a lens that was trained."""
    folder = tmp_path / "lens"
    sha256 = write(folder)
    assert queue_lens(over) == 4
    assert train_lens(over, uri=str(folder), sha256=sha256) == 4
    return over


def test_a_lens_is_held_to_its_own_promises(with_lens: Engine) -> None:
    assert found(with_lens) == []


@pytest.mark.parametrize(("told", "statement"), LENS_PLANTED.items(), ids=[*LENS_PLANTED])
def test_what_is_wrong_with_a_lens_is_found(told: str, statement: str, with_lens: Engine) -> None:
    with with_lens.execution_options(orch_write=True).begin() as connection:
        connection.execute(text(statement))
    assert any(told in one for one in found(with_lens)), found(with_lens)
