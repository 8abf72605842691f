"""Real trainings, disturbed: whatever happens in between, curve and counts are those of one that nobody disturbed."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select

from orchestrator import queue
from orchestrator.database.models import CheckpointRow, Event
from tests.faults.conftest import MakeWorld, Whole, counts
from tests.small_world import COUNTING, LONG, World, is_gone, small_config, trainers


def test_f23_paused_while_a_checkpoint_is_written(world: World, subject: Path, whole: Whole) -> None:
    (job,) = world.enqueue(small_config(subject, max_tokens=LONG))
    gate, waiting = world.settings.home / "gate", world.settings.home / "waiting"
    gated = {"module": "tests.faults.crashing", "ORCH_TRAINER": "tests.faults.gated", "ORCH_GATE": str(gate)}
    worker = world.work(**gated)
    world.wait(lambda: world.is_in_training(job, 1))
    gate.touch()
    world.wait(waiting.exists)
    queue.pause(world.engine, [job])
    world.wait(lambda: "pause: writing a checkpoint" in world.said())
    assert world.job(job).state == "running"
    gate.unlink()
    world.wait_state(job, "paused")
    assert not trainers(worker)
    written = [*(world.settings.artifacts_folder / str(job) / "1").iterdir()]
    assert written
    assert all((folder / "manifest.json").exists() for folder in written), "whole checkpoints alone"
    saved = checkpoints(world, job)[0]
    queue.resume(world.engine, [job])
    world.wait_state(job, "succeeded")
    (paused, _), (done, resumed_at) = world.attempts(job)
    assert (paused, done, resumed_at) == ("paused", "max_tokens", saved)
    assert world.curve(job) == whole.curve


def test_f24_a_truncated_and_a_corrupted_checkpoint(world: World, subject: Path, whole: Whole) -> None:
    (job,) = world.enqueue(small_config(subject, max_tokens=LONG))
    expected: list[int] = []
    for attempt, damage in ((1, truncate), (2, corrupt)):
        worker = world.work()
        world.wait(partial(world.is_in_training, job, attempt))
        world.wait(lambda: len(checkpoints(world, job)) > 1)
        worker.terminate()
        assert worker.wait(60) == 0, world.said()
        newest, before = checkpoints(world, job)[:2]
        damage(Path(world.one(CheckpointRow, job_id=job, tokens_seen=newest).uri) / "state.safetensors")
        expected += [newest, before]
    assert world.work("--until-empty").wait(200) == 0, world.said()
    starts = [start for _, start in world.attempts(job)]
    assert starts == [0, expected[1], expected[3]]
    passed = world.rows(select(Event.data).filter_by(job_id=job, kind="checkpoints_passed_over").order_by(Event.id))
    assert [data["tokens_seen"] for (data,) in passed] == [[expected[0]], [expected[2]]]
    log = world.settings.home / "logs" / str(job) / "3.log"
    assert "passed over a checkpoint" in log.read_text()
    assert world.curve(job) == whole.curve


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def corrupt(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def checkpoints(world: World, job: int) -> list[int]:
    """Return the tokens of the checkpoints the database knows, the newest first."""
    newest = select(CheckpointRow.tokens_seen).filter_by(job_id=job).order_by(CheckpointRow.tokens_seen.desc())
    return [tokens for (tokens,) in world.rows(newest)]


def test_f36_counts_after_several_preemptions(world: World, subject: Path, whole: Whole) -> None:
    (job,) = world.enqueue(small_config(subject, max_tokens=LONG))
    worker = world.work("--until-empty")
    for attempt in (1, 2, 3):
        world.wait(partial(world.is_in_training, job, attempt))
        trainers(worker)[0].terminate()  # as by a notice that the machine goes: exit status 75
    assert worker.wait(200) == 0, world.said()
    assert [outcome for outcome, _ in world.attempts(job)] == ["preempted"] * 3 + ["max_tokens"]
    assert (world.job(job).preemptions, world.job(job).failures) == (3, 0)
    assert world.curve(job) == whole.curve
    assert len(whole.counts) == 4
    assert counts(world, job) == whole.counts
    assert world.result(job).tokens_seen == LONG


SLOW = {**COUNTING, "ORCH_STEPS": "400", "ORCH_STEP_SECONDS": "0.05"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_f20_told_twice(make_world: MakeWorld, number: signal.Signals) -> None:
    """The last checkpoint takes two seconds: a second SIGTERM does not shorten it, a second Ctrl-C does."""
    world = make_world(checkpoint_seconds=600)
    (job,) = world.enqueue(small_config(world.settings.home))
    worker = world.work(**SLOW, ORCH_YIELD_SECONDS="2")
    world.wait(lambda: world.curve(job))
    (trainer,) = trainers(worker)
    worker.send_signal(number)
    world.wait(lambda: "shutdown: writing a checkpoint" in world.said())
    worker.send_signal(number)
    assert worker.wait(60) == 0, world.said()
    assert is_gone(trainer)
    assert (world.job(job).state, world.job(job).preemptions) == ("queued", 1)
    assert world.has_checkpoint(job, 1) == (number == signal.SIGTERM)


def test_f27_a_poison_job_starves_nobody(make_world: MakeWorld) -> None:
    world = make_world(lease_seconds=2)
    poison, *good = world.enqueue(*(small_config(world.settings.home, seed=seed) for seed in (13, 1, 2)))
    worker = world.work("--until-empty", **COUNTING)
    assert worker.wait(120) == 0, world.said()
    assert [world.attempts(job) for job in good] == [[("max_tokens", 0)]] * 2
    assert [outcome for outcome, _ in world.attempts(poison)] == ["crashed"] * 3
    assert world.job(poison).state == "failed"
    assert "SIGSEGV (3 of 3 failures)" in (world.job(poison).reason or "")
