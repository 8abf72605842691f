"""Four jobs of one stream, a supervisor in the test's own thread, and trainers that are a few lines each."""

import re
import sys
import threading
from collections.abc import Callable

import pytest

from orchestrator.config.validation import parse
from tests.small_world import World
from worker.supervisor import trainer_process
from worker.supervisor.supervisor import Supervisor, this_worker

TRAINER = """
import os, sys, time
from pathlib import Path
from orchestrator.curves.point import Point
from worker.channel import SupervisorChannel
from worker.protocol import *
line = SupervisorChannel()
order = line.order(Order.from_json)
jobs = {job.job_id: job for job in order.jobs}
first, together = min(jobs), len(jobs) > 1
def point(job_id, tokens): line.send(CurvePointMessage(Point(tokens, *(1000 / tokens for _ in range(11)))), job_id)
def save(job_id, tokens):
    folder = f"{jobs[job_id].artifacts}/{tokens}"
    Path(folder).mkdir(parents=True, exist_ok=True)
    line.send(CheckpointRef(folder, tokens, "ab"), job_id)
def end(job_id):
    point(job_id, 2048)
    line.send(Ended('converged', 2048, 1.5, None, 1.0, 2.0, 3.0, 4.0), job_id)
    jobs.pop(job_id)
for job_id, job in jobs.items():
    line.send(Started(job.resume[0].tokens_seen if job.resume else 0, {"n_latents": 8, "d_model": 4}), job_id)
line.training_from({job_id: 0 for job_id in jobs})
def train(may_end, seconds=30):
    until = time.monotonic() + seconds
    while jobs and time.monotonic() < until:
        time.sleep(0.01)
        for job_id in jobs: line.alive(512, job_id)
        for request in line.drop_requests():
            if request.job_id in jobs:
                if request.save: save(request.job_id, 512)
                line.send(Left(512), request.job_id)
                jobs.pop(request.job_id)
        if line.must_yield:
            for job_id in jobs: save(job_id, 768)
            sys.exit(75)
        if may_end():
            for job_id in list(jobs): end(job_id)
"""
GO = "train(lambda: Path(os.environ['ORCH_TEST_GO']).exists())\n"


class Scripted:
    """A world, a supervisor in the test's own thread, and a trainer made of a script."""

    start = ""
    """What every script begins with."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world, self.monkeypatch = world, monkeypatch
        self.said: list[str] = []
        me = this_worker("one", pid=1, device="cpu")
        self.supervisor = Supervisor(world.settings, world.engine, worker=me, threads=1, say=self.said.append)

    def trainer(self, script: str) -> None:
        self.monkeypatch.setattr(trainer_process, "COMMAND", (sys.executable, "-c", self.start + script))

    def work(self, meanwhile: Callable[[], object], *, until_empty: bool) -> None:
        """Let the supervisor work, and another thread disturb it."""
        failed: list[BaseException] = []

        def disturb() -> None:
            try:
                meanwhile()
            except BaseException as error:  # noqa: BLE001 - told to the test below
                failed.append(error)
                self.supervisor.stop()

        thread = threading.Thread(target=disturb)
        thread.start()
        self.supervisor.run(until_empty=until_empty)
        thread.join()
        assert not failed, (failed, self.said)


class Company(Scripted):
    """Four jobs of one stream."""

    start = TRAINER

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(world, monkeypatch)
        self.go = world.settings.home / "go"
        monkeypatch.setenv("ORCH_TEST_GO", str(self.go))
        self.jobs = world.enqueue(*(parse({"training": {"seed": seed}, "sae": {"n_latents": 64}}) for seed in range(4)))

    def run(self, meanwhile: Callable[[], object] = lambda: None, *, until_empty: bool = True) -> list[str]:
        self.work(meanwhile, until_empty=until_empty)
        return [self.world.job(job).state for job in self.jobs]

    def wait_begun(self) -> None:
        self.world.wait(lambda: all(self.world.attempts(job)[:1] == [(None, 0)] for job in self.jobs), 20)

    def outcomes(self, job: int) -> list[str | None]:
        return [outcome for outcome, _ in self.world.attempts(job)]

    @property
    def trainers(self) -> int:
        return len({found[1] for line in self.said if (found := re.search(r", trainer (\d+)$", line))})
