"""Real trainers that several jobs share, killed and steered in the middle: each curve is the one drawn alone.

Jobs that read a model, at several layers, are shared and steered in `unit/worker/trainer/test_shared_training.py`.
"""

from pathlib import Path
from typing import Any

import pytest

from orchestrator import queue
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from tests.small_world import World, is_gone, small_config, small_world, trainers

Curve = list[tuple[float, ...]]
TOKENS = 64 * 2048
"""Of each of several jobs: some seconds together, also on a fast machine."""
PLANTED = Path("synthetic:planted?d_model=32&latents=128&k=3&noise=0.02")


def jobs() -> list[JobConfig]:
    """Return jobs of different size, sparsity, activation, seed and learning rate on one stream."""
    config = small_config(PLANTED, max_tokens=TOKENS).model_dump()
    parts: tuple[dict[str, Any], ...] = (
        {},
        {"sae": {"n_latents": 48, "k": 2, "activation": "relu"}, "optimizer": {"lr": 0.003, "ema": 0.9}},
        {"sae": {"n_latents": 32, "k": 3, "normalize": "none"}, "training": config["training"] | {"seed": 7}},
    )
    return [parse(config | part) for part in parts]


def curves(world: World, ids: list[int]) -> list[Curve]:
    """Return the stored curves, without what the jobs paid for the subject: that depends on who shared it."""
    return [world.curve(job, with_subject=False) for job in ids]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[Curve]:
    """Return the curve of each job, trained by itself and undisturbed."""
    with small_world(tmp_path_factory.mktemp("alone") / "home", jobs_per_trainer=1) as world:
        ids = world.enqueue(*jobs())
        assert world.work("--until-empty").wait(200) == 0, world.said()
        assert [world.attempts(job) for job in ids] == [[("max_tokens", 0)]] * len(ids)
        return curves(world, ids)


def begun(world: World, ids: list[int], attempt: int = 1) -> bool:
    return {world.is_in_training(job, attempt) for job in ids} == {True}  # all are asked: none may be over


def test_f04_a_group_is_killed_and_each_goes_on_alone(world: World, alone: list[Curve]) -> None:
    ids = world.enqueue(*jobs())
    worker = world.work("--until-empty")
    world.wait(lambda: begun(world, ids))
    (trainer,) = trainers(worker)
    trainer.kill()
    assert worker.wait(200) == 0, world.said()
    assert curves(world, ids) == alone
    for job in ids:
        (crashed, _), (done, resumed_at) = world.attempts(job)
        assert (crashed, done) == ("crashed", "max_tokens")
        assert resumed_at


def test_f19_a_worker_is_stopped_and_the_group_goes_on_together(world: World, alone: list[Curve]) -> None:
    ids = world.enqueue(*jobs())
    first = world.work()
    world.wait(lambda: begun(world, ids))
    (trainer,) = trainers(first)
    first.terminate()
    assert first.wait(60) == 0
    assert is_gone(trainer)
    starts = {world.job(job).state for job in ids}
    assert starts == {"queued"}
    assert world.work("--until-empty").wait(200) == 0, world.said()
    assert curves(world, ids) == alone
    resumed = [world.attempts(job)[1] for job in ids]
    assert len(set(resumed)) == 1, "all from one place"
    facts = world.last_attempt(ids[0]).facts
    assert facts
    assert facts["shared_with"] == ids[1:]


def test_one_is_cancelled_one_paused_and_resumed(world: World, alone: list[Curve]) -> None:
    ids = world.enqueue(*jobs())
    worker = world.work("--until-empty")
    world.wait(lambda: begun(world, ids))
    (trainer,) = trainers(worker)
    queue.cancel(world.engine, [ids[0]])
    queue.pause(world.engine, [ids[1]])
    world.wait_state(ids[0], "cancelled")
    world.wait_state(ids[1], "paused")
    assert trainers(worker) == [trainer], "the others did not notice"
    queue.resume(world.engine, [ids[1]])
    assert worker.wait(200) == 0, world.said()
    found = curves(world, ids)
    assert found[1:] == alone[1:]
    assert found[0] == alone[0][: len(found[0])]
    assert [outcome for outcome, _ in world.attempts(ids[1])] == ["paused", "max_tokens"]
