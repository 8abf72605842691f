"""What `orch` says of a job: where it reads, what auto came to, how far it is, and whether anybody works."""

from collections.abc import Iterator
from pathlib import Path
from socket import gethostname

import pytest
from sqlalchemy import Engine

from orchestrator import queue, results
from orchestrator.cli.display.demo_view import LineView
from orchestrator.cli.main import run
from orchestrator.config.validation import parse
from orchestrator.database.schema import open_database
from orchestrator.settings import Settings
from orchestrator.sweep.sweep import Sweep
from tests.queue_shorthand import claim, enqueue, point, ref, result
from tests.small_world import make_subject, small_config, small_world
from tests.worker_shorthand import let_commands_reach

Capture = pytest.CaptureFixture[str]
FACTS = {
    "lr": 0.01234, "k_aux": 64, "n_latents": 1024, "d_model": 128, "dead_after_tokens": 2_500_000,
    "subject": {"site": "resid_post of transformer.h.3"}, "step": "kernels in C",
}  # fmt: skip


@pytest.fixture
def engine(sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    let_commands_reach(sqlite_settings, monkeypatch)
    engine = open_database(sqlite_settings)
    yield engine
    engine.dispose()


def test_show_says_where_a_job_reads_and_what_auto_came_to(engine: Engine, capsys: Capture) -> None:
    queue.enqueue(engine, Sweep("s", (parse({"subject": {"layer": 3}, "training": {"max_tokens": 10**6}}),)))
    assert run(["show", "1"]) == 0
    said = capsys.readouterr().out
    assert "shipped:stdlib-gpt2" in said
    assert "layer 3, resid_post" in said
    assert "python:stdlib, contexts of 128 tokens" in said
    queue.begin(engine, claim(engine).lease, FACTS, 0)
    assert run(["show", "1"]) == 0
    said = capsys.readouterr().out
    assert "layer 3, resid_post (resid_post of transformer.h.3)" in said
    assert ["step", "kernels", "in", "C"] in [line.split() for line in said.splitlines()]
    assert "lr 0.01234, n_latents 1,024, k_aux 64, dead_after_tokens 2,500,000" in said


def test_the_lines_of_a_demo_tell_apart_what_a_job_did_and_why_it_ended(engine: Engine, capsys: Capture) -> None:
    """It was "after 983k tokens max_tokens", and a colon after which nothing came."""
    first, second = enqueue(engine, 2)
    view = LineView()
    view.show(results.jobs(engine))
    lease = claim(engine).lease
    queue.begin(engine, lease, FACTS, 0)
    queue.record(engine, lease, [point(1000, 0.25)])
    queue.finish(engine, lease, result(tokens_seen=1000, outcome="max_tokens"))
    view.show(results.jobs(engine))
    queue.cancel(engine, [second])
    view.show(results.jobs(engine))
    trained, cancelled = (line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines())
    assert trained.startswith(f"job {first} (n ")
    assert trained.endswith("after 1.00k tokens, max_tokens")
    assert cancelled.startswith(f"job {second} (n ")
    assert not cancelled.endswith(":")


def test_the_progress_of_a_paused_job_is_its_checkpoints(engine: Engine) -> None:
    enqueue(engine)
    lease = claim(engine).lease
    queue.begin(engine, lease, {}, 0)
    queue.record(engine, lease, [point(500)])
    queue.checkpointed(engine, lease, ref(400))
    queue.record(engine, lease, [point(600)])
    assert results.jobs(engine)[0].tokens_seen == 600
    queue.pause(engine, [1])
    assert queue.release(engine, lease) == "paused"
    assert results.jobs(engine)[0].tokens_seen == 400, "from there it goes on"


def test_waiting_without_a_worker_says_so(engine: Engine, capsys: Capture) -> None:
    enqueue(engine)
    assert run(["wait", "s", "--timeout", "0.1s"]) == 6
    assert "No worker runs: nothing happens until one is started with: orch worker" in capsys.readouterr().err


def test_spans_of_time_are_read_alike(engine: Engine, capsys: Capture) -> None:
    for text in ("7d", "1.5h", "2 weeks", "90", "10 minutes"):
        assert run(["gc", "--dry-run", "--older-than", text]) == 0, text
    assert run(["gc", "--dry-run", "--older-than", "soon"]) == 2
    assert "is no time span" in capsys.readouterr().err


def test_a_mistake_of_the_user_leaves_no_traceback_and_points_no_wall_of_lines(tmp_path: Path) -> None:
    subject = make_subject(tmp_path / "subject")
    good, bad = small_config(subject), small_config(subject, seed=1)
    bad = bad.model_copy(update={"subject": bad.subject.model_copy(update={"layer": 99})})
    with small_world(tmp_path / "home") as world:
        ids = world.enqueue(good, bad)
        world.work("--until-empty")
        for job, state in zip(ids, ("succeeded", "failed"), strict=True):
            world.wait_state(job, state)
        world.wait(lambda: "ends" in world.said())
        logs = [path.read_text() for path in (world.settings.home / "logs").rglob("*.log")]
        assert any("99" in text for text in logs)
        assert not any("Traceback" in text for text in logs)
        told = [line for line in world.said().splitlines() if f"job {ids[0]}" in line and "fvu" in line]
        assert len(told) <= 1, "one line per job and minute"


def test_a_dry_run_says_how_long_by_jobs_alike_that_ran_here(
    engine: Engine, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "next.yaml"
    file.write_text("sae: {n_latents: 128, k: 8}\ntraining.max_tokens: 1_000_000\n")
    assert run(["enqueue", str(file), "--dry-run"]) == 0
    assert "Time: not known, for no job like these has ended on this host" in capsys.readouterr().out
    queue.enqueue(engine, Sweep("s", (parse({"sae": {"n_latents": 64, "k": 8}}),)))
    lease = queue.claim(engine, queue.Worker("w", gethostname(), 1, "cpu"), token="t", lease_seconds=60)
    assert lease is not None
    queue.begin(engine, lease.lease, {"n_latents": 64, "d_model": 128}, 0)
    queue.finish(engine, lease.lease, result(outcome="max_tokens", tokens_seen=100_000, wall_seconds=10.0))
    assert run(["enqueue", str(file), "--dry-run"]) == 0
    # 10^6 tokens at 10^-4 s each, twice as large.
    assert (
        "Time: about 3m20s of training on this host with one worker, and each trainer's start (measured on job 1)"
        in capsys.readouterr().out
    )
    assert run(["enqueue", str(file), "sae.n_latents=128,4096", "--dry-run"]) == 0
    assert "about 3m20s of training on this host with one worker, 1 job of unknown time, and" in capsys.readouterr().out
    assert run(["enqueue", str(file), "sae.n_latents=4096", "--dry-run", "-o", "json"]) == 0
    assert '"seconds": null' in capsys.readouterr().out, "64 times larger: nothing alike"
