"""A real child that has carried out its order and waits: who gets it, and how it ends."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator.config.evaluation.evaluation import (
    EvaluatedSae,
    EvaluatedSaeRef,
    EvaluationConfig,
    EvaluationPlan,
)
from orchestrator.config.job import DataConfig, JobConfig, SubjectConfig
from worker.evaluation_order import EvaluationAssignment, EvaluationOrder
from worker.protocol import Assignment, Exit, Order
from worker.supervisor import trainer_process
from worker.supervisor.idle_process import IdleProcess
from worker.supervisor.trainer_process import TrainerProcess

CHILD = """
import sys
from worker.channel import SupervisorChannel
from worker.protocol import Left, Order
channel = SupervisorChannel()
channel.order(Order.from_json)
print("the first order", flush=True)
order = channel.next_order()
print("the second order", flush=True)
channel.send(Left(order.threads))
"""
EVALUATION = EvaluationOrder((), "", "", "", "cpu", 1, os.getpid())
FOREIGN_CODE = EvaluationConfig(
    plan=EvaluationPlan(), sae=EvaluatedSaeRef(id=1), data=DataConfig(), heldout_tokens=64,
    subject=SubjectConfig(model="m", layer=1, trust_remote_code=True),
)  # fmt: skip
JOB = EvaluationAssignment(8, 1, FOREIGN_CODE, EvaluatedSae(uri="", label="", facts={}), "")
TRAINING = Order((Assignment(7, 1, JobConfig(), "a", ()),), "", "", "cpu", 1, 1.0, os.getpid())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COMMAND", "EVALUATION_COMMAND"):
        monkeypatch.setattr(trainer_process, name, (sys.executable, "-c", CHILD))


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[TrainerProcess]:
    process = TrainerProcess(TRAINING, log=tmp_path / "first.log")
    assert process.next(30) is None
    assert (process.is_idle, process.ended) == (True, False)
    yield process
    process.close()


def test_an_evaluation_gets_it_and_its_own_log(waiting: TrainerProcess, tmp_path: Path) -> None:
    idle = IdleProcess()
    assert idle.keep(waiting, threads=1) == Exit.DONE
    process = idle.start(EVALUATION, log=tmp_path / "logs" / "second.log")
    assert process is waiting
    said = process.next(30)
    assert said is not None
    assert not process.is_idle
    assert process.next(30) is None
    assert process.close() == 0
    assert "the first order" in (tmp_path / "first.log").read_text()
    assert "the second order" not in (tmp_path / "first.log").read_text()
    assert "the second order" in (tmp_path / "logs" / "second.log").read_text()


@pytest.mark.parametrize("order", [TRAINING, replace(EVALUATION, threads=2), replace(EVALUATION, jobs=(JOB,))])
def test_training_other_threads_and_code_that_comes_with_a_model_get_a_process_of_their_own(
    waiting: TrainerProcess, order: Order | EvaluationOrder, tmp_path: Path
) -> None:
    idle = IdleProcess()
    idle.keep(waiting, threads=1)
    process = idle.start(order, log=tmp_path / "second.log")
    try:
        assert process.pid != waiting.pid
        assert not psutil.pid_exists(waiting.pid), "it holds memory that the next one is to have"
    finally:
        process.close()


def test_it_ends_when_nothing_follows_and_when_it_is_told_to(waiting: TrainerProcess, tmp_path: Path) -> None:
    idle = IdleProcess()
    idle.keep(waiting, threads=1)
    idle.end()
    assert not psutil.pid_exists(waiting.pid)
    idle.end()
    told = TrainerProcess(TRAINING, log=tmp_path / "told.log")
    assert told.next(30) is None
    assert told.is_idle
    os.kill(told.pid, signal.SIGTERM)
    assert told.next(30) is None
    assert told.ended
    assert told.close() == Exit.YIELDED
