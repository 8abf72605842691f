"""A larger budget for jobs that have trained: one curve, the same job, whatever becomes of the worker meanwhile."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select

from benchmarks import invariants
from orchestrator import queue, results
from orchestrator.cli.main import run
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.database.models import CheckpointRow
from orchestrator.errors import StateError
from orchestrator.settings import Settings
from tests.integration.test_worker import work
from tests.queue_shorthand import claim, enqueue, job, point, ref, result
from tests.small_world import SYNTHETIC, World, small_config, small_world
from tests.worker_shorthand import let_commands_reach
from worker.tracking.mlflow_client import MlflowClient
from worker.tracking.shipper import Tracking

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
FIRST, THEN = 8192, 32_768


def auto_config(max_tokens: int, **optimizer: Any) -> JobConfig:
    """Return a config whose learning rate and window of dead latents are auto, or those that are given."""
    values = small_config(SYNTHETIC, max_tokens=max_tokens).model_dump(mode="json", exclude_unset=True)
    values["optimizer"] |= optimizer
    values["training"]["dead_after_tokens"] = values["optimizer"].pop("dead_after_tokens", "auto")
    return parse(values)


def broken_promises(world: World) -> list[str]:
    return [*invariants.violations(invariants.read(world.settings.database))]


def test_the_curve_is_that_of_a_job_of_the_larger_budget_also_past_a_kill(tmp_path: Path) -> None:
    with small_world(tmp_path / "home") as world:
        (job,) = world.enqueue(auto_config(FIRST))
        work(world)
        facts = world.last_attempt(job).facts or {}
        assert facts["max_tokens"] == FIRST
        before, asked = world.curve(job), world.job(job).config
        queue.extend(world.engine, [job], max_tokens=THEN)
        assert (world.job(job).state, world.job(job).asked_config) == ("queued", asked)
        worker = world.work()
        world.wait(lambda: world.is_in_training(job, 2))
        worker.kill()
        world.work("--until-empty")
        world.wait_state(job, "succeeded")
        # The learning rate and the window stay what auto came to at the first budget: it is one training.
        settled = {"lr": facts["lr"], "dead_after_tokens": facts["dead_after_tokens"]}
        (whole,) = world.enqueue(auto_config(THEN, **settled), name="whole")
        world.wait_state(whole, "succeeded") if world.job(whole).state == "running" else work(world)
        curve, at_once = world.curve(job), world.curve(whole)
        assert curve[: len(before)] == before
        assert {point[0] for point in curve} - {point[0] for point in at_once} <= {FIRST}
        assert [point[0:3] for point in curve if point[0] > 2 * FIRST] == [p[0:3] for p in at_once if p[0] > 2 * FIRST]
        assert world.result(job).tokens_seen == THEN
        assert [start for _, start in world.attempts(job)][1] == FIRST
        assert broken_promises(world) == []


def test_what_was_asked_for_is_kept_and_enqueueing_again_adds_nothing(tmp_path: Path) -> None:
    with small_world(tmp_path / "home") as world:
        (job,) = world.enqueue(auto_config(FIRST))
        queue.extend(world.engine, [job], max_tokens=THEN)
        config = json.loads(world.job(job).config)
        # Nothing has been trained: auto follows the new budget.
        assert (config["optimizer"]["lr"], config["training"]["dead_after_tokens"]) == ("auto", "auto")
        assert config["training"]["max_tokens"] == world.job(job).max_tokens == THEN
        assert world.enqueue(auto_config(FIRST)) == []
        (row,) = results.jobs(world.engine)
        assert (row.max_tokens, row.asked_max_tokens) == (THEN, FIRST)
        work(world)
        assert world.result(job).tokens_seen == THEN


def test_what_cannot_go_on_is_refused_in_words(tmp_path: Path) -> None:
    def refused(world: World, job: int, words: str) -> None:
        with pytest.raises(StateError, match=words):
            queue.extend(world.engine, [job], max_tokens=THEN)

    with small_world(tmp_path / "home") as world:
        decayed, plain = world.enqueue(auto_config(FIRST, decay_tokens=2048), auto_config(FIRST, lr=1e-3))
        queue.extend(world.engine, [decayed], max_tokens=FIRST + 1024)  # its decay has not begun
        work(world)
        refused(world, decayed, "has decayed its learning rate")
        assert [c.effect for c in queue.extend(world.engine, [plain, decayed], max_tokens=FIRST)] == [
            "has a budget of 8,192 tokens already",
            "has a budget of 9,216 tokens already",
        ]
        with world.engine.begin() as session:
            session.execute(delete(CheckpointRow))
        refused(world, plain, "has no checkpoint any more")
        queue.pause(world.engine, world.enqueue(auto_config(FIRST, lr=2e-3)))
        assert queue.extend(world.engine, [3], max_tokens=THEN)[0].state == "paused"
        queue.cancel(world.engine, [3])
        refused(world, 3, "is cancelled: retry it first")
        assert world.rows(select(CheckpointRow)) == []


def test_mlflow_shows_one_run_with_both_budgets(tmp_path: Path, empty_store: Path) -> None:
    with small_world(tmp_path / "home") as world:
        shutil.copy(empty_store, world.settings.home / "mlflow.db")
        (job,) = world.enqueue(auto_config(FIRST))
        for budget in (FIRST, 2 * FIRST):
            if budget > FIRST:
                queue.extend(world.engine, [job], max_tokens=budget)
            trouble: list[str] = []
            tracking = Tracking(world.engine, world.settings, say=trouble.append)
            work(world, tracking=tracking)
            assert tracking.close(60), trouble
            assert trouble == []
        client: Any = MlflowClient(world.settings)._client
        run = client.get_run(world.job(job).mlflow_run_id)
        assert run.data.params["training.max_tokens"] == str(FIRST)
        assert run.data.tags["orch.extended_to_tokens"] == str(2 * FIRST)
        assert run.info.status == "FINISHED"
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "fvu")]
        assert (steps == sorted(steps), max(steps)) == (True, 2 * FIRST)
        (first,) = client.search_runs([run.info.experiment_id], "tags.`orch.attempt` = '1'")
        assert first.info.status == "FINISHED"


def test_the_verb_on_both_databases(engine: Engine) -> None:
    (job_id,) = enqueue(engine)
    lease = claim(engine).lease
    queue.begin(engine, lease, {"lr": 0.0123, "n_latents": 64, "d_model": 32}, 0)
    queue.record(engine, lease, [point(100)])
    queue.checkpointed(engine, lease, ref(100))
    queue.finish(engine, lease, result(outcome="max_tokens"))
    [change] = queue.extend(engine, [job_id], max_tokens=50_000_000)
    assert change == queue.Change(job_id, "queued", "queued, 20,000,000 to 50,000,000 tokens")
    assert results.convergence(engine, job_id) == []
    assert (job(engine, job_id).finished_at, job(engine, job_id).not_before) == (None, 0.0), "it waits for no time"
    taken = claim(engine)
    assert (taken.job_config.training.max_tokens, taken.job_config.optimizer.lr) == (50_000_000, 0.0123)
    # An eighth of the first budget, not of the new one: latents that were dead stay so.
    assert taken.job_config.training.dead_after_tokens == 2_500_000
    assert taken.cursor == 100
    with pytest.raises(StateError, match="is running: pause it first"):
        queue.extend(engine, [job_id], max_tokens=60_000_000)
    queue.finish(engine, lease, result(outcome="max_tokens"))  # its answer had been lost: finishing twice is once
    queue.finish(engine, taken.lease, result(outcome="converged", tokens_seen=200))
    with pytest.raises(StateError, match="has converged"):
        queue.extend(engine, [job_id], max_tokens=60_000_000)
    [event] = [one for one in results.events(engine, job_id) if one.kind == "extended"]
    assert (event.data or {})["outcome"] == "max_tokens"


@pytest.mark.parametrize(
    ("text", "tokens"), [("50M", 50_000_000), ("1.5k", 1500), ("2_048", 2048), ("5e7", 50_000_000), ("2.3M", 2_300_000)]
)
def test_tokens_are_read_as_they_are_written(text: str, tokens: int, engine: Engine, settings: Settings,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    let_commands_reach(settings, monkeypatch)
    enqueue(engine)
    assert run(["extend", "1", "--max-tokens", text]) == (4 if tokens <= 20_000_000 else 0)
    assert run(["extend", "1", "--max-tokens", f"{text}okens"]) == 2
    assert job(engine, 1).max_tokens == max(tokens, 20_000_000)
