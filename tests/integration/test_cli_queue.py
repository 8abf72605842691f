"""The commands about jobs, in one process, on a real database; the tests call the queue as a worker would."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from orchestrator import queue, results
from orchestrator.cli.main import run
from orchestrator.curves.point import Point
from orchestrator.settings import Settings

pytestmark = pytest.mark.databases("sqlite")

SWEEP = """
version: 1
name: small
overrides: {subject.layer: 3, training.max_tokens: 65536, training.first_point_tokens: 8192}
sweep:
  - grid: {sae.n_latents: [256, 512], sae.k: [4, 8]}
"""
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SWEEP)
    return path


@pytest.fixture
def queued(engine: Engine, file: Path, capsys: Capture) -> Engine:
    assert run(["enqueue", str(file)]) == 0
    capsys.readouterr()
    return engine


def _piped(text: str, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "orchestrator", "enqueue", "-", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_sweep_from_standard_input(engine: Engine) -> None:
    status, said, _ = _piped(SWEEP, "sae.k=4")
    assert (status, said.splitlines()[-1].partition(" · ")[0]) == (0, "small: added 2, already there 0")
    assert [row.k for row in results.jobs(engine, sweep="small")] == [4, 4]
    assert _piped("overrides: {sae.k: 8}", "-o", "name")[:2] == (0, "3\n")
    assert [one.name for one in results.sweeps(engine)] == ["small", "stdin"], "for want of a file's name"
    status, _, told = _piped("overrides: {sae.kk: 8}")
    assert (status, told.splitlines()[0]) == (2, "Error: -:1:13: unknown key 'sae.kk'; did you mean 'sae.k'?")


def _claim(engine: Engine) -> queue.Lease:
    worker = queue.Worker("w1", "here", 1, "cpu")
    claim = queue.claim(engine, worker, token="t" * 8, lease_seconds=60)
    assert claim
    queue.begin(engine, claim.lease, {"d_model": 128, "n_latents": claim.job_config.sae.n_latents}, 0)
    return claim.lease


def _point(tokens: int, fvu: float) -> Point:
    return Point(tokens, fvu, fvu, fvu, 0.0, 0.01, 4.0, 0.1, 1.0, 1e9, 1e9, 1e9)


def _finish(engine: Engine, lease: queue.Lease) -> None:
    queue.record(engine, lease, [_point(8192 * 2**i, 0.5 * 0.8**i) for i in range(4)])
    done = queue.Result(
        outcome="converged", tokens_seen=65536, untrained_fvu=1.2, artifact_uri="file:///x", wall_seconds=1.0,
        flops_dense=1e9, flops_executed=1e9, flops_subject=1e9,
    )  # fmt: skip
    queue.finish(engine, lease, done)


def _json(capsys: Capture) -> dict[str, object]:
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_a_dry_run_writes_nothing(file: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["enqueue", str(file), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "n_latents  k" in out
    assert "would add 4, already there 0" in out
    assert "262k training tokens" in out
    assert not (tmp_path / "home").exists()


def test_enqueueing_twice_adds_nothing(engine: Engine, file: Path, capsys: Capture) -> None:
    assert run(["enqueue", str(file)]) == 0
    first = capsys.readouterr()
    assert "added 4, already there 0" in first.out
    assert "Next:" in first.err
    assert run(["enqueue", str(file)]) == 0
    assert "added 0, already there 4" in capsys.readouterr().out
    assert run(["enqueue", str(file), "--dry-run"]) == 0
    assert "would add 0, already there 4" in capsys.readouterr().out
    assert run(["enqueue", str(file), "--allow-duplicate", "-o", "name"]) == 0
    assert capsys.readouterr().out.split() == ["5", "6", "7", "8"]


def test_enqueue_with_overrides_for_programs(engine: Engine, file: Path, capsys: Capture) -> None:
    assert run(["enqueue", str(file), "sae.k=4", "-n", "other", "-p", "7", "-o", "json"]) == 0
    found = _json(capsys)
    assert (found["schema"], found["sweep"], found["added"]) == ("orch.enqueue/1", "other", 2)
    assert run(["status", "other", "-o", "json"]) == 0
    items = json.loads(capsys.readouterr().out)["items"]
    assert [(item["k"], item["priority"]) for item in items] == [(4, 7), (4, 7)]


@pytest.mark.parametrize("arguments", [["sae.kk=4"], ["sae.k=0"], ["-n", "7"], ["sae.k=100000"]])
def test_a_wrong_config_adds_nothing(engine: Engine, file: Path, capsys: Capture, arguments: list[str]) -> None:
    assert run(["enqueue", str(file), *arguments]) == 2
    assert capsys.readouterr().err.startswith("Error: ")
    assert run(["status", "-o", "name"]) == 0
    assert capsys.readouterr().out == ""


def test_f11_a_broker_that_is_away_is_a_warning(
    engine: Engine, file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_BROKER_URL", "redis://127.0.0.1:1/0")
    assert run(["enqueue", str(file)]) == 0
    said = capsys.readouterr()
    assert "added 4" in said.out
    assert "Warning: the broker does not answer" in said.err


def test_status_of_a_life(queued: Engine, capsys: Capture) -> None:
    lease = _claim(queued)
    queue.record(queued, lease, [_point(8192, 0.5)])
    queue.heartbeat(queued, lease, lease_seconds=60, tokens_seen=16384, tokens_per_second=1000.0)
    assert run(["ps"]) == 0
    said = capsys.readouterr()
    head, line = said.out.strip().splitlines()
    assert head.split()[:5] == ["ID", "STATE", "N", "K", "PROGRESS"]
    assert line.split()[:9] == ["1", "running", "256", "4", "25%", "1.00k", "49s", "0.5000", "4.0"]
    assert "1 running" in said.err
    assert "1 worker at work" in said.err
    _finish(queued, lease)
    assert run(["ls", "1", "-o", "csv"]) == 0
    assert "succeeded" in capsys.readouterr().out
    assert run(["status", "small", "-s", "queued,running", "-o", "name"]) == 0
    assert capsys.readouterr().out.split() == ["2", "3", "4"]
    assert run(["status", "--limit", "3", "-o", "name"]) == 0
    assert capsys.readouterr().out.split() == ["2", "3", "4"], "what waits is shown before what is done"
    assert run(["status", "-o", "wide"]) == 0
    assert "UNTRAINED" in capsys.readouterr().out


def test_status_json(queued: Engine, capsys: Capture) -> None:
    assert run(["status", "1", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (item,) = found["items"]
    assert found["schema"] == "orch.status/1"
    assert item["reason"] == "NoWorker"
    assert item["created_at"].endswith("Z")
    assert item["fvu"] is None


def test_show(queued: Engine, capsys: Capture) -> None:
    lease = _claim(queued)
    queue.checkpointed(queued, lease, queue.CheckpointRef("/place", 8192, "ab" * 32))
    _finish(queued, lease)
    assert run(["show", "1"]) == 0
    out = capsys.readouterr().out
    assert "n_latents 256, k 4, d_model 128" in out
    assert "converged" in out
    words = {"attempts": "w1", "events": "enqueued", "checkpoints": "/place", "curve": "65.5k", "config": "sae"}
    for part, word in words.items():
        assert run(["show", "1", f"--{part}"]) == 0
        assert word in capsys.readouterr().out
    assert run(["show", "1", "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["items"][0]["convergence"]) == 4
    assert run(["show", "1", "--curve", "-o", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert run(["show", "2", "--attempts"]) == 0
    assert "no attempts yet" in capsys.readouterr().err


def test_explain(queued: Engine, capsys: Capture) -> None:
    def explained(job: int) -> str:
        assert run(["explain", str(job)]) == 0
        return capsys.readouterr().out

    assert "orch worker" in explained(1)
    lease = _claim(queued)
    assert "It runs. Attempt 1, on w1" in explained(1)
    queue.pause(queued, [1])
    assert "asked to pause" in explained(1)
    assert "orch resume 2" in (explained(2) if queue.pause(queued, [2]) else "")
    queue.fail(queued, lease, error="it broke", exit_code=70, outcome="failed", retry=False)
    assert "it broke" in explained(1)
    assert "orch retry 1" in explained(1)


def test_explain_says_what_is_before_what_it_needs_and_who_could_share(queued: Engine, capsys: Capture) -> None:
    def explained(job: int) -> str:
        assert run(["explain", str(job)]) == 0
        return capsys.readouterr().out

    waiting = explained(3)
    assert "2 queued jobs may run before it; the first is job 1." in waiting
    assert "Memory: about" in waiting
    assert "(at most 8)" in waiting
    assert "is read by 3 other queued jobs" in waiting
    assert "may run before it" not in explained(1)
    lease = _claim(queued)
    assert "is read by 2 other queued jobs, and by 1 running" in explained(3)
    queue.begin(queued, lease, {"shared_with": [2, 3]}, 0)
    assert "Its process began with jobs 2, 3 too." in explained(1)
    queue.fail(queued, lease, error="it broke", exit_code=70, outcome="failed", retry=True, backoff_seconds=0)
    assert "It is trained alone" in explained(1)
    assert "is read by 2 other queued jobs." in explained(3)


def test_steering(queued: Engine, capsys: Capture) -> None:
    assert run(["pause", "1"]) == 0
    assert capsys.readouterr().out == "job 1: paused\n"
    assert run(["resume", "1"]) == 0
    assert run(["cancel", "small"]) == 2, "nobody is there to say yes"
    assert "--yes" in capsys.readouterr().err
    assert run(["cancel", "small", "--no-input"]) == 2
    assert run(["cancel", "2", "3", "-y", "-o", "name"]) == 0
    assert capsys.readouterr().out.split() == ["2", "3"]
    assert run(["resume", "2"]) == 4
    assert capsys.readouterr().err.startswith("Error: cannot resume job 2")
    assert run(["retry", "2", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == [{"job_id": 2, "state": "queued", "effect": "queued"}]
    assert run(["cancel", "99"]) == 3
    assert run(["cancel", "smal"]) == 3
    assert "did you mean 'small'" in capsys.readouterr().err


def test_draining_a_sweep(queued: Engine, capsys: Capture) -> None:
    assert run(["pause", "small", "--drain"]) == 0
    assert run(["explain", "1"]) == 0
    assert "orch resume small" in capsys.readouterr().out
    assert run(["pause", "1", "--drain"]) == 4
    assert run(["resume", "small", "-y"]) == 0
    assert run(["status", "1", "-o", "json"]) == 0
    assert '"NoWorker"' in capsys.readouterr().out


def test_wait(queued: Engine, capsys: Capture) -> None:
    assert run(["wait", "small", "--timeout", "0.1s"]) == 6
    assert "4 of 4 jobs had not ended" in capsys.readouterr().err
    _finish(queued, _claim(queued))
    assert run(["wait", "1"]) == 0
    assert "job 1 succeeded  fvu 0.2560, L0 4.0  converged" in capsys.readouterr().out
    assert run(["wait", "small", "--any"]) == 0
    assert run(["cancel", "2"]) == 0
    assert run(["wait", "1", "2"]) == 8
    lease = _claim(queued)
    queue.fail(queued, lease, error="it broke", exit_code=70, outcome="failed", retry=False)
    assert run(["wait", "1", "2", "3"]) == 7
    assert run(["wait", "77"]) == 3


def test_logs(queued: Engine, sqlite_settings: Settings, capsys: Capture) -> None:
    assert run(["logs", "1"]) == 3
    folder = sqlite_settings.home / "logs" / "1"
    folder.mkdir(parents=True)
    (folder / "1.log").write_text("a\nb\nc\n")
    (folder / "2.log").write_text("d\ne\n")
    capsys.readouterr()
    for arguments, out in (([], "d\ne\n"), (["--attempt", "1", "--tail", "2"], "b\nc\n"), (["--tail", "0"], "")):
        assert run(["logs", "1", *arguments]) == 0
        assert capsys.readouterr().out == out
    shared = "10:00:00 job 1: fvu 0.5\n10:00:01 job 2: failed\nTraceback of job 2\n10:00:02 left\n10:00:03 job 1: end\n"
    (folder / "2.log").write_text(shared)
    assert run(["logs", "1"]) == 0
    assert capsys.readouterr().out == "10:00:00 job 1: fvu 0.5\n10:00:02 left\n10:00:03 job 1: end\n"
    assert run(["logs", "1", "--all"]) == 0
    assert capsys.readouterr().out == shared
    (folder / "2.log").write_text("d\ne\n")
    assert run(["logs", "1", "--attempt", "9"]) == 3
    assert "Attempts with a log: 1, 2" in capsys.readouterr().err
    queue.cancel(queued, [1])
    assert run(["logs", "1", "-f", "--attempt", "1", "--tail", "1"]) == 0
    assert capsys.readouterr().out == "c\n==> attempt 2 <==\nd\ne\n"
    (folder / "2.log").write_text(f"{shared}10:00:04 job 2: fvu 0.4\n10:00:05 job 2: end\n")
    (folder / "3.log").write_text("begun\n")
    for options, out in ((["--attempt", "2"], "==> attempt 3 <==\nbegun\n"), ([], "")):
        if not options:
            (folder / "3.log").unlink()
        assert run(["logs", "1", *options, "-f", "--tail", "2"]) == 0
        assert capsys.readouterr().out == f"10:00:02 left\n10:00:03 job 1: end\n{out}"
    assert run(["logs", "1", "--tail", "2"]) == 0
    assert capsys.readouterr().out == "10:00:02 left\n10:00:03 job 1: end\n"


def test_status_asks_nothing_of_evaluations_where_there_are_none(queued: Engine, capsys: Capture) -> None:
    said: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_more: object) -> None:
        said.append(" ".join(statement.split()))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert run(["status", "small"]) == 0
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert not [one for one in said if "measured_families" in one]
    assert len([one for one in said if "WHERE sweeps.name = " in one]) == 1, "the name is looked up once"
