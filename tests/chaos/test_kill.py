"""Real processes, killed in the middle: nothing is lost, nothing is done twice, and no bit of a curve changes."""

import signal
import sqlite3
import subprocess
from contextlib import closing

import psutil

from orchestrator import queue
from tests.small_world import COUNTING, SYNTHETIC, World, is_gone, small_config, trainers

Curve = list[tuple[float, ...]]


def test_f03_f04_f19_kill_9_of_the_worker_then_of_the_trainer_then_sigterm(
    world: World, long_tokens: int, undisturbed: Curve
) -> None:
    (job,) = world.enqueue(small_config(SYNTHETIC, max_tokens=long_tokens))
    first = world.work()
    world.wait(lambda: world.is_in_training(job, 1))
    (trainer,) = trainers(first)
    first.kill()
    world.wait(lambda: is_gone(trainer), 5)  # no orphan
    second = world.work()
    world.wait(lambda: world.is_in_training(job, 2))
    trainers(second)[0].kill()
    world.wait(lambda: world.is_in_training(job, 3))
    (trainer,) = trainers(second)
    second.terminate()
    assert second.wait(30) == 0
    assert is_gone(trainer)
    assert world.job(job).state == "queued"
    assert (world.job(job).failures, world.job(job).preemptions) == (1, 1)
    assert world.work("--until-empty").wait(120) == 0, world.said()
    assert world.job(job).state == "succeeded"
    outcomes, starts = zip(*world.attempts(job), strict=True)
    assert outcomes == ("lost", "crashed", "preempted", "max_tokens")
    assert starts[0] == 0 < starts[1] < starts[2] < starts[3]
    assert world.curve(job) == undisturbed


def freezes_outside_a_transaction(world: World, worker: subprocess.Popen[bytes]) -> bool:
    """Stop a worker, unless it holds the lock of SQLite just then: nobody could write until it wakes up."""
    worker.send_signal(signal.SIGSTOP)
    world.wait(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
    with closing(sqlite3.connect(world.settings.home / "orch.db", timeout=0.2)) as probe:
        try:
            probe.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            worker.send_signal(signal.SIGCONT)
            return False
    return True


def test_f05_a_frozen_worker_that_wakes_up_writes_nothing(world: World) -> None:
    (job,) = world.enqueue(small_config(SYNTHETIC))
    hold = world.settings.home / "hold"  # without it no attempt comes to its end
    hold.touch()
    counting = {**COUNTING, "ORCH_STEPS": "100", "ORCH_HOLD": str(hold)}
    frozen = world.work(**counting)
    world.wait(lambda: world.is_in_training(job, 1))
    (trainer,) = trainers(frozen)
    trainer.suspend()
    world.wait(lambda: freezes_outside_a_transaction(world, frozen))
    other = world.work("--until-empty", **counting)
    world.wait(lambda: world.is_in_training(job, 2))
    frozen.send_signal(signal.SIGCONT)
    world.wait(lambda: is_gone(trainer), 10)
    hold.unlink()
    assert other.wait(120) == 0, world.said()
    assert "the lease is lost" in world.said()
    assert [outcome for outcome, _ in world.attempts(job)] == ["lost", "max_tokens"]


def test_pause_resume_and_cancel_of_a_running_job(world: World) -> None:
    (job,) = world.enqueue(small_config(SYNTHETIC))
    worker = world.work(**COUNTING, ORCH_STEPS="100000")
    world.wait(lambda: world.is_in_training(job, 1))
    queue.pause(world.engine, [job])
    world.wait_state(job, "paused")
    assert trainers(worker) == []
    queue.resume(world.engine, [job])
    world.wait(lambda: world.is_in_training(job, 2))
    queue.cancel(world.engine, [job])
    world.wait_state(job, "cancelled")
    assert trainers(worker) == []
    (paused, _), (cancelled, resumed_at) = world.attempts(job)
    assert (paused, cancelled) == ("paused", "cancelled")
    assert resumed_at
    assert world.job(job).preemptions == 0


def test_two_workers_never_train_one_job_twice(world: World) -> None:
    jobs = world.enqueue(*(small_config(SYNTHETIC, n_latents=n) for n in (32, 48, 64)))
    workers = [world.work("--until-empty", "--jobs", "1", "--name", name, **COUNTING) for name in ("one", "two")]
    assert [worker.wait(120) for worker in workers] == [0, 0], world.said()
    assert all(world.attempts(job) == [("max_tokens", 0)] for job in jobs)
    assert all(world.job(job).state == "succeeded" for job in jobs)
