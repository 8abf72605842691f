"""Jobs on one stream: each one's curve is, bit for bit, the one it draws alone, whatever becomes of its neighbours."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.curves.point import Point
from tests.small_world import CONTEXT, make_subject
from worker.activations.model_source import ModelActivations
from worker.activations.source import HookSlots
from worker.data import token_file
from worker.protocol import (
    Alive,
    Assignment,
    CurvePointMessage,
    DropJob,
    Ended,
    Exit,
    Failure,
    Left,
    Message,
    Order,
)
from worker.subject import model
from worker.trainer.__main__ import TrainerContext, _enrol
from worker.trainer.job import JobTraining
from worker.trainer.shared_training import SharedTraining

BATCH, WINDOW, BUDGET = 64, 512, 2048
PARTS: list[dict[str, Any]] = [
    {"sae": {"n_latents": 64, "k": 4}},
    {"sae": {"n_latents": 48, "k": 3, "activation": "relu"}, "optimizer": {"lr": 0.01}},
    {"sae": {"n_latents": 96, "k": 6, "normalize": "none"}, "training": {"seed": 5}},
    {"sae": {"n_latents": 32, "k": 2, "activation": "batchtopk"}, "subject": {"layer": 0}},
]
Then = Callable[["Recorder"], object]
Resume = dict[int, list[CheckpointRef]]


class Recorder:
    """The trainer's end of the line, in memory: it keeps what is said, and does something when a job gets that far."""

    def __init__(self, after: dict[tuple[int, int], Then] | None = None) -> None:
        self.said: list[tuple[int | None, Message]] = []
        self.must_yield = False
        self.leaves: list[DropJob] = []
        self._after = after or {}

    def send(self, message: Message, job_id: int | None = None) -> None:
        self.said.append((job_id, message))

    def alive(self, tokens_seen: int, job_id: int | None = None, *, phase: str = "training") -> None:
        self.send(Alive(tokens_seen, 0.0, phase), job_id)
        if then := self._after.get((job_id or 0, tokens_seen)):
            then(self)

    def wishes(self) -> list[DropJob]:
        found, self.leaves = self.leaves, []
        return found

    def of(self, job_id: int, kind: type[Message]) -> list[Any]:
        return [message for job, message in self.said if job == job_id and isinstance(message, kind)]

    def curve(self, job_id: int) -> list[tuple[float, ...]]:
        """Return what was measured, but for what is shared: time, and the subject's work."""
        return [exact(message.point) for message in self.of(job_id, CurvePointMessage)]


class Room:
    """A model, a text, and trainers for jobs that read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_subject(folder / "subject")
        self.subject = model.load(self.config({}).subject)
        self.tokens = token_file.pack(self.config({}).data, self.subject.tokenizer, folder / "tokens")
        self.runs = 0

    def config(self, part: dict[str, Any]) -> JobConfig:
        own: dict[str, Any] = {
            "subject": {"model": str(self.folder / "subject"), "layer": 1},
            "data": {"source": str(self.folder / "subject" / "text.txt"), "context_length": CONTEXT},
            "optimizer": {"ema": 0.9},
            "training": {
                "batch_tokens": BATCH, "shuffle_tokens": WINDOW, "heldout_tokens": 256, "max_tokens": BUDGET,
                "first_point_tokens": 256, "dead_after_tokens": 512,
            },
            "stop": {"rule": "max_tokens"},
        }  # fmt: skip
        return parse({name: own.get(name, {}) | part.get(name, {}) for name in own | part})

    def train(
        self, parts: dict[int, dict[str, Any]], line: Recorder | None = None, resume: Resume | None = None
    ) -> tuple[Recorder, Exit]:
        """Train jobs together, each from its newest checkpoint."""
        line, self.runs = line or Recorder(), self.runs + 1
        configs = {job_id: self.config(part) for job_id, part in parts.items()}
        jobs = tuple(
            Assignment(i, 1, config, str(self.folder / str(i) / f"run{self.runs}"), tuple((resume or {}).get(i, ())))
            for i, config in configs.items()
        )
        order = Order(jobs, "", "", "cpu", 1, math.inf, 0)
        places = HookSlots(ModelActivations(self.subject, self.tokens, jobs[0].config))
        desk = TrainerContext(order, line, places, "cpu", None)  # type: ignore[arg-type]
        members: list[JobTraining] = [_enrol(desk, job) for job in jobs]
        ensemble = SharedTraining(members, line, places=places, save_every=order.checkpoint_seconds)  # type: ignore[arg-type]
        return line, ensemble.run()


def exact(point: Point) -> tuple[float, ...]:
    return point._replace(wall_seconds=0.0, flops_subject=0.0)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Room(tmp_path_factory.mktemp("room"))
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone(room: Room) -> dict[int, list[tuple[float, ...]]]:
    """Return the curve of each job trained by itself."""
    return {i: room.train({i: part})[0].curve(i) for i, part in enumerate(PARTS, 1)}


def everybody() -> dict[int, dict[str, Any]]:
    return dict(enumerate(PARTS, 1))


def test_together_is_as_alone(room: Room, alone: dict[int, Any]) -> None:
    line, code = room.train(everybody())
    assert code == Exit.DONE
    for job_id, curve in alone.items():
        assert len(curve) > 5
        assert line.curve(job_id) == curve
        (ended,) = line.of(job_id, Ended)
        assert (ended.outcome, ended.tokens_seen) == ("max_tokens", BUDGET)
        assert (Path(ended.artifact_uri) / "sae.safetensors").exists()
    assert not line.of(1, Failure)


def test_the_subject_is_paid_for_once(room: Room) -> None:
    line, _ = room.train(everybody())
    shares = [line.of(job_id, Ended)[0].flops_subject for job_id in everybody()]
    whole = room.train({1: PARTS[0]})[0].of(1, Ended)[0].flops_subject
    assert len(set(shares)) == 1
    assert sum(shares) == pytest.approx(whole)
    assert whole == pytest.approx(2 * room.subject.parameters_run * BUDGET)


@pytest.mark.parametrize("save", [False, True], ids=["cancelled", "paused"])
def test_a_neighbour_that_leaves_changes_nothing(room: Room, alone: dict[int, Any], save: bool) -> None:
    line = Recorder({(2, 10 * BATCH): lambda line: line.leaves.append(DropJob(2, save))})
    line, code = room.train(everybody(), line)
    assert code == Exit.DONE
    assert line.of(2, Left) == [Left(10 * BATCH)]
    assert [saved.tokens_seen for saved in line.of(2, CheckpointRef)] == [10 * BATCH] * save
    assert not line.of(2, Ended)
    assert line.curve(2) == alone[2][: len(line.curve(2))]
    for job_id in (1, 3, 4):
        assert line.curve(job_id) == alone[job_id]


def test_a_neighbour_that_fails_changes_nothing(room: Room, alone: dict[int, Any], tmp_path: Path) -> None:
    def break_it(line: Recorder) -> None:
        if not line.of(3, Failure):
            raise RuntimeError("its own trouble")

    line, code = room.train(everybody(), Recorder({(3, 8 * BATCH): break_it}))
    assert code == Exit.DONE
    (failure,) = line.of(3, Failure)
    assert (failure.message, failure.code) == ("its own trouble", Exit.INTERNAL)
    assert not line.of(3, Ended)
    for job_id in (1, 2, 4):
        assert line.curve(job_id) == alone[job_id]


def test_a_neighbour_whose_disk_is_full_changes_nothing(room: Room, alone: dict[int, Any]) -> None:
    blocked = room.folder / "2" / f"run{room.runs + 1}"
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("a file where its folder should be")
    line, _ = room.train(everybody())
    (failure,) = line.of(2, Failure)
    assert failure.kind == "StorageError"
    assert not line.of(2, Ended)
    assert [line.curve(job_id) for job_id in (1, 3, 4)] == [alone[job_id] for job_id in (1, 3, 4)]


def test_neighbours_that_diverge_or_converge_early_change_nothing(room: Room, alone: dict[int, Any]) -> None:
    wild = {"sae": {"n_latents": 64, "k": 4}, "optimizer": {"lr": 1e30, "ema": 0.9}}
    quick = {"sae": {"n_latents": 64, "k": 4}, "stop": {"rule": "plateau", "epsilon": 0.9}}
    line, _ = room.train({1: PARTS[0], 7: wild, 8: quick, 4: PARTS[3]})
    (diverged,), (converged,) = line.of(7, Ended), line.of(8, Ended)
    assert diverged.outcome == "diverged"
    assert converged.outcome == "converged"
    assert converged.tokens_seen < BUDGET
    assert line.curve(8) == alone[1][: len(line.curve(8))], "the same as its neighbour, until it stopped"
    assert line.curve(1) == alone[1]
    assert line.curve(4) == alone[4]


def test_told_to_yield_all_stand_at_one_place_and_go_on_from_there(room: Room, alone: dict[int, Any]) -> None:
    def stop(line: Recorder) -> None:
        line.must_yield = True

    first, code = room.train(everybody(), Recorder({(2, 11 * BATCH): stop}))
    assert code == Exit.YIELDED
    saved = {job_id: first.of(job_id, CheckpointRef) for job_id in everybody()}
    assert {one.tokens_seen for (one,) in saved.values()} == {11 * BATCH}
    second, _ = room.train(everybody(), resume=saved)
    for job_id in everybody():
        assert first.curve(job_id) + second.curve(job_id) == alone[job_id]


def test_who_stands_further_on_joins_when_the_stream_is_there(room: Room, alone: dict[int, Any]) -> None:
    """One comes from another window, one from the middle of this one, one from the start, and one is done."""

    def stop_at(tokens_seen: int, job_id: int) -> list[CheckpointRef]:
        def stop(line: Recorder) -> None:
            line.must_yield = True

        line, _ = room.train({job_id: PARTS[job_id - 1]}, Recorder({(job_id, tokens_seen): stop}))
        return line.of(job_id, CheckpointRef)

    resume = {1: stop_at(3 * BATCH, 1), 2: stop_at(20 * BATCH, 2), 4: stop_at(BUDGET - BATCH, 4)}
    line, _ = room.train(everybody(), resume=resume)
    for job_id in everybody():
        done = resume.get(job_id, [CheckpointRef("", 0, "")])[0].tokens_seen
        assert line.curve(job_id) == [point for point in alone[job_id] if point[0] > done]
    order = [job_id for job_id, message in line.said if isinstance(message, Alive) and message.phase == "training"]
    assert order[0] == 3, "the hindmost begins"


def test_who_is_left_far_ahead_is_not_waited_for(room: Room, alone: dict[int, Any]) -> None:
    def stop(line: Recorder) -> None:
        line.must_yield = True

    ahead, _ = room.train({1: PARTS[0]}, Recorder({(1, 24 * BATCH): stop}))
    line = Recorder({(2, 2 * BATCH): lambda line: line.leaves.append(DropJob(2, save=False))})
    line, _ = room.train({1: PARTS[0], 2: PARTS[1]}, line, {1: ahead.of(1, CheckpointRef)})
    assert line.of(2, Left)
    assert ahead.curve(1) + line.curve(1) == alone[1]


def test_a_place_that_cannot_be_read_ends_those_who_read_there(room: Room) -> None:
    """A block whose weights are broken while it trains: those who read before it go on."""
    bias = room.subject.model.transformer.h[1].mlp.c_proj.bias.data
    kept, longer = bias.clone(), {"training": {"max_tokens": 96 * BATCH}}  # a forward pass is 64 batches long
    below = room.train({4: PARTS[3] | longer})[0].curve(4)
    try:
        line = Recorder({(1, 2 * WINDOW): lambda _: bias.fill_(math.nan)})
        line, code = room.train({1: PARTS[0] | longer, 4: PARTS[3] | longer}, line)
    finally:
        bias.copy_(kept)
    assert code == Exit.DONE
    (failure,) = line.of(1, Failure)
    assert failure.kind == "SubjectError"
    assert not line.of(1, Ended)
    assert not line.of(4, Failure)
    assert line.curve(4) == below


def test_where_nobody_can_read_the_trainer_fails(room: Room) -> None:
    bias = room.subject.model.transformer.h[0].mlp.c_proj.bias.data
    kept = bias.clone()
    longer = {"training": {"max_tokens": 96 * BATCH}}
    try:
        line = Recorder({(1, 2 * WINDOW): lambda _: bias.fill_(math.nan)})
        line, _ = room.train({1: PARTS[0] | longer, 2: PARTS[1] | longer}, line)
    finally:
        bias.copy_(kept)
    assert [line.of(job_id, Failure)[0].code for job_id in (1, 2)] == [Exit.BAD_CONFIG] * 2
