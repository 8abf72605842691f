"""Real workers as processes: listed, drained, stopped and killed; their log is JSON."""

import json
from pathlib import Path

import pytest

from orchestrator import results
from orchestrator.cli.main import run
from tests.small_world import LONG, SYNTHETIC, small_config, small_world
from tests.worker_shorthand import silence


def test_real_workers_are_seen_drained_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_world(tmp_path / "home", jobs_per_trainer=1, log_format="json") as world:

        def members() -> dict[str, tuple[str, int]]:
            return {row.name: (row.state, len(row.jobs)) for row in results.registered_workers(world.engine)}

        monkeypatch.setenv("ORCH_HOME", str(world.settings.home))
        jobs = world.enqueue(*(small_config(SYNTHETIC, max_tokens=LONG, n_latents=n) for n in (32, 48, 64)))
        first, second = world.work("--name", "first"), world.work("--name", "second")
        world.wait(lambda: members() == {"first": ("at work", 1), "second": ("at work", 1)})
        assert run(["queue", "pause"]) == 0
        (stopped,) = (job for job in jobs[:2] if world.last_attempt(job).worker == "second")
        world.wait(lambda: world.is_in_training(stopped, 1))
        assert run(["worker", "stop", "second"]) == 0
        assert run(["worker", "drain", "first"]) == 0
        assert second.wait(60) == 0, world.said()
        assert first.wait(120) == 0, world.said()
        assert members() == {}
        assert sorted(world.job(job).state for job in jobs) == ["queued", "queued", "succeeded"]
        outcomes = {world.last_attempt(job).worker: world.last_attempt(job).outcome for job in jobs[:2]}
        assert outcomes == {"first": "max_tokens", "second": "preempted"}
        check_log(world.said(), stopped)
        third = world.work("--name", "third")
        world.wait(lambda: members() == {"third": ("idle", 0)})
        third.kill()
        third.wait()
        (third_life,) = results.registered_workers(world.engine)
        silence(world.engine, third_life.token)
        assert members() == {"third": ("lost", 0)}


def check_log(text: str, stopped: int) -> None:
    said = [json.loads(line) for line in text.splitlines()]
    assert {line["worker"] for line in said} == {"first", "second"}
    about = [line for line in said if line.get("job") == stopped]
    assert {(line["worker"], line["attempt"], len(line["token"])) for line in about} == {("second", 1, 8)}
    assert "shutdown: writing a checkpoint" in [line["message"] for line in about]
