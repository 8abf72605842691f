"""Jobs on one stream: each one's curve is, bit for bit, the one it draws alone, whatever becomes of the others."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

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
    Started,
)
from worker.subject.model import load
from worker.trainer.context import TrainerContext
from worker.trainer.job_start import start_job
from worker.trainer.shared_training import SharedTraining

BATCH, WINDOW, BUDGET = 64, 512, 2048
PARTS: list[dict[str, Any]] = [
    {"sae": {"n_latents": 64, "k": 4}},
    {"sae": {"n_latents": 48, "k": 3, "activation": "relu"}, "optimizer": {"lr": 0.01}},
    {"sae": {"n_latents": 96, "k": 6, "normalize": "none"}, "training": {"seed": 5}},
    {"sae": {"n_latents": 32, "k": 2, "activation": "batchtopk"}, "subject": {"layer": 0}},
    {"sae": {"n_latents": 80, "k": 4}, "subject": {"layer": None, "layers": "all"}},
]
Then = Callable[["Recorder"], object]
Resume = dict[int, list[CheckpointRef]]


class Recorder:
    """A trainer's channel, in memory: it keeps what is sent, and does something when a job gets that far."""

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

    def drop_requests(self) -> list[DropJob]:
        found, self.leaves = self.leaves, []
        return found

    def of(self, job_id: int, kind: type[Message]) -> list[Any]:
        return [message for job, message in self.said if job == job_id and isinstance(message, kind)]

    def curve(self, job_id: int) -> list[tuple[float | None, ...]]:
        """Return what was measured, but for what is shared: time, and the subject's work."""
        return [exact(message.point) for message in self.of(job_id, CurvePointMessage)]


class TinyTrainers:
    """A model, a text, and trainers for jobs that read them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_subject(folder / "subject")
        self.subject = load(self.config({}).subject)
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
        self, parts: dict[int, dict[str, Any]], channel: Recorder | None = None, resume: Resume | None = None
    ) -> tuple[Recorder, Exit]:
        """Train jobs together, each from its newest checkpoint."""
        channel, self.runs = channel or Recorder(), self.runs + 1
        configs = {job_id: self.config(part) for job_id, part in parts.items()}
        jobs = tuple(
            Assignment(i, 1, config, str(self.folder / str(i) / f"run{self.runs}"), tuple((resume or {}).get(i, ())))
            for i, config in configs.items()
        )
        order = Order(jobs, "", "", "cpu", 1, math.inf, 0)
        slots = HookSlots(ModelActivations(self.subject, self.tokens, jobs[0].config))
        context = TrainerContext(order, channel, slots, "cpu", None)  # type: ignore[arg-type]
        started = [start_job(context, job) for job in jobs]
        how: dict[str, Any] = {"slots": slots, "save_every": order.checkpoint_seconds, "threads": 2}
        training = SharedTraining(started, channel, **how)  # type: ignore[arg-type]
        return channel, training.run()


def exact(point: Point) -> tuple[Any, ...]:
    return point._replace(wall_seconds=0.0, flops_subject=0.0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyTrainers:
    return TinyTrainers(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def alone(tiny: TinyTrainers) -> dict[int, list[tuple[float | None, ...]]]:
    """Return the curve of each job trained by itself."""
    return {i: tiny.train({i: part})[0].curve(i) for i, part in enumerate(PARTS, 1)}


def all_jobs() -> dict[int, dict[str, Any]]:
    return dict(enumerate(PARTS, 1))


def test_together_is_as_alone(tiny: TinyTrainers, alone: dict[int, Any]) -> None:
    channel, code = tiny.train(all_jobs())
    assert code == Exit.DONE
    for job_id, curve in alone.items():
        assert len(curve) > 5
        assert channel.curve(job_id) == curve
        (ended,) = channel.of(job_id, Ended)
        assert (ended.outcome, ended.tokens_seen) == ("max_tokens", BUDGET)
        assert (Path(ended.artifact_uri) / "sae.safetensors").exists()
    assert not channel.of(1, Failure)


@pytest.mark.parametrize("activation", ["topk", "multi_topk", "batchtopk", "relu", "jumprelu"])
def test_one_layer_in_a_list_is_that_layer_bit_for_bit(tiny: TinyTrainers, activation: str) -> None:
    sae = {"sae": {"n_latents": 64, "k": 3, "activation": activation}}
    alone, _ = tiny.train({1: sae})
    listed, _ = tiny.train({1: sae | {"subject": {"layer": None, "layers": [1]}}})
    assert len(alone.curve(1)) > 5
    assert listed.curve(1) == alone.curve(1)
    saved = [
        [load_file(f"{one.uri}/state.safetensors") for one in told.of(1, CheckpointRef)] for told in (listed, alone)
    ]
    for ours, theirs in zip(*saved, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_of_several_layers_every_length_is_in_tokens_of_text(tiny: TinyTrainers) -> None:
    every, _ = tiny.train({1: PARTS[4]})
    (ended,), (started,) = every.of(1, Ended), every.of(1, Started)
    one, _ = tiny.train({1: PARTS[4] | {"subject": {"layer": 1}}})
    (alone,) = one.of(1, Ended)
    assert ended.tokens_seen == alone.tokens_seen == BUDGET
    assert [point[0] for point in every.curve(1)] == [point[0] for point in one.curve(1)]
    assert ended.flops_subject == alone.flops_subject
    aux = {"training": {"dead_after_tokens": BUDGET}}  # no latent can be dead
    two, one_of_two = (
        tiny.train({1: PARTS[4] | aux | {"subject": place}})[0].of(1, Ended)[0]
        for place in ({"layer": None, "layers": "all"}, {"layer": 1})
    )
    assert (two.flops_dense, two.flops_executed) == (2 * one_of_two.flops_dense, 2 * one_of_two.flops_executed)
    assert started.facts["heldout_tokens"] == one.of(1, Started)[0].facts["heldout_tokens"]
    assert started.facts["dead_after_tokens"] == 512
    assert (started.facts["subject"]["layers"], len(started.facts["variances"])) == ([0, 1], 2)


def test_the_subject_is_paid_for_once(tiny: TinyTrainers) -> None:
    channel, _ = tiny.train(all_jobs())
    shares = [channel.of(job_id, Ended)[0].flops_subject for job_id in all_jobs()]
    whole = tiny.train({1: PARTS[0]})[0].of(1, Ended)[0].flops_subject
    assert len(set(shares)) == 1
    assert sum(shares) == pytest.approx(whole)
    assert whole == pytest.approx(2 * tiny.subject.parameters_run * BUDGET)


@pytest.mark.parametrize("save", [False, True], ids=["cancelled", "paused"])
def test_a_job_that_leaves_changes_no_other(tiny: TinyTrainers, alone: dict[int, Any], save: bool) -> None:
    channel = Recorder({(2, 10 * BATCH): lambda channel: channel.leaves.append(DropJob(2, save))})
    channel, code = tiny.train(all_jobs(), channel)
    assert code == Exit.DONE
    assert channel.of(2, Left) == [Left(10 * BATCH)]
    assert [saved.tokens_seen for saved in channel.of(2, CheckpointRef)] == [10 * BATCH] * save
    assert not channel.of(2, Ended)
    assert channel.curve(2) == alone[2][: len(channel.curve(2))]
    for job_id in (1, 3, 4):
        assert channel.curve(job_id) == alone[job_id]


def test_a_job_that_fails_changes_no_other(tiny: TinyTrainers, alone: dict[int, Any], tmp_path: Path) -> None:
    def break_it(channel: Recorder) -> None:
        if not channel.of(3, Failure):
            raise RuntimeError("its own trouble")

    channel, code = tiny.train(all_jobs(), Recorder({(3, 8 * BATCH): break_it}))
    assert code == Exit.DONE
    (failure,) = channel.of(3, Failure)
    assert (failure.message, failure.code) == ("its own trouble", Exit.INTERNAL)
    assert not channel.of(3, Ended)
    for job_id in (1, 2, 4):
        assert channel.curve(job_id) == alone[job_id]


def test_a_job_whose_disk_is_full_changes_no_other(tiny: TinyTrainers, alone: dict[int, Any]) -> None:
    blocked = tiny.folder / "2" / f"run{tiny.runs + 1}"
    blocked.parent.mkdir(exist_ok=True)
    blocked.write_text("a file where its folder should be")
    channel, _ = tiny.train(all_jobs())
    (failure,) = channel.of(2, Failure)
    assert failure.kind == "StorageError"
    assert not channel.of(2, Ended)
    assert [channel.curve(job_id) for job_id in (1, 3, 4)] == [alone[job_id] for job_id in (1, 3, 4)]


def test_jobs_that_diverge_or_converge_early_change_no_other(tiny: TinyTrainers, alone: dict[int, Any]) -> None:
    wild = {"sae": {"n_latents": 64, "k": 4}, "optimizer": {"lr": 1e30, "ema": 0.9}}
    quick = {"sae": {"n_latents": 64, "k": 4}, "stop": {"rule": "plateau", "epsilon": 0.9}}
    channel, _ = tiny.train({1: PARTS[0], 7: wild, 8: quick, 4: PARTS[3]})
    (diverged,), (converged,) = channel.of(7, Ended), channel.of(8, Ended)
    assert diverged.outcome == "diverged"
    assert converged.outcome == "converged"
    assert converged.tokens_seen < BUDGET
    assert channel.curve(8) == alone[1][: len(channel.curve(8))], "the same as job 1, until it stopped"
    assert channel.curve(1) == alone[1]
    assert channel.curve(4) == alone[4]


def test_told_to_yield_all_save_at_one_position_and_go_on_from_there(tiny: TinyTrainers, alone: dict[int, Any]) -> None:
    def stop(channel: Recorder) -> None:
        channel.must_yield = True

    first, code = tiny.train(all_jobs(), Recorder({(2, 11 * BATCH): stop}))
    assert code == Exit.YIELDED
    saved = {job_id: first.of(job_id, CheckpointRef) for job_id in all_jobs()}
    assert {one.tokens_seen for (one,) in saved.values()} == {11 * BATCH}
    second, _ = tiny.train(all_jobs(), resume=saved)
    for job_id in all_jobs():
        assert first.curve(job_id) + second.curve(job_id) == alone[job_id]


def test_a_job_further_on_joins_when_the_stream_is_there(tiny: TinyTrainers, alone: dict[int, Any]) -> None:
    """One comes from another window, one from the middle of this one, one from the start, and one is done."""

    def stop_at(tokens_seen: int, job_id: int) -> list[CheckpointRef]:
        def stop(channel: Recorder) -> None:
            channel.must_yield = True

        channel, _ = tiny.train({job_id: PARTS[job_id - 1]}, Recorder({(job_id, tokens_seen): stop}))
        return channel.of(job_id, CheckpointRef)

    resume = {1: stop_at(3 * BATCH, 1), 2: stop_at(20 * BATCH, 2), 4: stop_at(BUDGET - BATCH, 4)}
    channel, _ = tiny.train(all_jobs(), resume=resume)
    for job_id in all_jobs():
        done = resume.get(job_id, [CheckpointRef("", 0, "")])[0].tokens_seen
        assert channel.curve(job_id) == [point for point in alone[job_id] if point[0] > done]
    order = [job_id for job_id, message in channel.said if isinstance(message, Alive) and message.phase == "training"]
    assert order[0] in {3, 5}, "those with the fewest tokens begin"


def test_a_job_left_far_ahead_does_not_wait(tiny: TinyTrainers, alone: dict[int, Any]) -> None:
    def stop(channel: Recorder) -> None:
        channel.must_yield = True

    ahead, _ = tiny.train({1: PARTS[0]}, Recorder({(1, 24 * BATCH): stop}))
    channel = Recorder({(2, 2 * BATCH): lambda channel: channel.leaves.append(DropJob(2, save=False))})
    channel, _ = tiny.train({1: PARTS[0], 2: PARTS[1]}, channel, {1: ahead.of(1, CheckpointRef)})
    assert channel.of(2, Left)
    assert ahead.curve(1) + channel.curve(1) == alone[1]


def test_a_slot_that_cannot_be_read_ends_the_jobs_of_it(tiny: TinyTrainers) -> None:
    """A block whose weights are broken while it trains: those who read before it go on."""
    bias = tiny.subject.model.transformer.h[1].mlp.c_proj.bias.data
    kept, longer = bias.clone(), {"training": {"max_tokens": 96 * BATCH}}  # a forward pass is 64 batches long
    below = tiny.train({4: PARTS[3] | longer})[0].curve(4)
    try:
        channel = Recorder({(1, 2 * WINDOW): lambda _: bias.fill_(math.nan)})
        channel, code = tiny.train({1: PARTS[0] | longer, 4: PARTS[3] | longer}, channel)
    finally:
        bias.copy_(kept)
    assert code == Exit.DONE
    (failure,) = channel.of(1, Failure)
    assert failure.kind == "SubjectError"
    assert not channel.of(1, Ended)
    assert not channel.of(4, Failure)
    assert channel.curve(4) == below


def test_where_no_slot_can_be_read_every_job_fails(tiny: TinyTrainers) -> None:
    bias = tiny.subject.model.transformer.h[0].mlp.c_proj.bias.data
    kept = bias.clone()
    longer = {"training": {"max_tokens": 256 * BATCH}}  # the sample, 128 of them, is read before
    try:
        channel = Recorder({(1, 2 * WINDOW): lambda _: bias.fill_(math.nan)})
        channel, _ = tiny.train({1: PARTS[0] | longer, 2: PARTS[1] | longer}, channel)
    finally:
        bias.copy_(kept)
    assert [channel.of(job_id, Failure)[0].code for job_id in (1, 2)] == [Exit.BAD_CONFIG] * 2
