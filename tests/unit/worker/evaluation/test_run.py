"""One evaluation process: whatever becomes of one SAE or one family, the others have their scores."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from orchestrator.config.evaluation.evaluation import EvaluatedSae, EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.job import DataConfig, SubjectConfig
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.errors import ConfigError, StorageError
from orchestrator.processes.c_compiler import c_compiler
from worker import checked_folder
from worker.channel import SupervisorChannel
from worker.evaluation import registry
from worker.evaluation import run as run_module
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae
from worker.evaluation.run import EvaluationRun
from worker.evaluation_order import EvaluationAssignment, EvaluationOrder
from worker.formats import portable
from worker.protocol import DropJob, Evaluated, Failure, Left, Message, NotScored, Scored, Started, decode, encode
from worker.sae.inference import InferenceSae
from worker.sae.native.kernels import kernels_for

DISTRIBUTION = "synthetic:gaussian?d_model=8&seed=0"


class Channel(SupervisorChannel):
    """What a supervisor would hear, each message through its JSON line."""

    def __init__(self) -> None:
        self.said: list[tuple[int | None, Message]] = []
        self.drops: list[DropJob] = []

    def send(self, message: Message, job_id: int | None = None) -> None:
        heard = decode(encode(message, job_id))
        assert heard
        self.said.append((heard.job_id, heard.message))

    def alive(self, tokens_seen: int, job_id: int | None = None, *, phase: str = "training") -> None:
        assert 0 <= tokens_seen <= 64

    def drop_requests(self) -> list[DropJob]:
        asked, self.drops = self.drops, []
        return asked

    def of(self, job_id: int) -> list[Message]:
        return [message for about, message in self.said if about == job_id]


def counts(saes: Sequence[SubjectSae], context: EvaluationContext, options: Any) -> Iterator[Measured | NotMeasured]:
    """Score each SAE by the vectors it is given; SAE 2 cannot be measured."""
    for one in saes:
        context.progress("counting", 0.5)
        if one.job_id == 2:
            yield NotMeasured(2, ConfigError("it cannot be counted", hint="try another"))
        else:
            files = {"of.json": {"label": one.label, "infinite": float("inf")}}
            yield Measured(one.job_id, [Score("count", len(context.vectors), details={"nan": float("nan")})], files)


def breaks(saes: Sequence[SubjectSae], context: EvaluationContext, options: Any) -> Iterator[Measured | NotMeasured]:
    """Measure the first SAE, and break."""
    yield Measured(saes[0].job_id, [Score("first", 1.0)])
    raise ZeroDivisionError("no more")


def is_full(saes: Sequence[SubjectSae], context: EvaluationContext, options: Any) -> Iterator[Measured | NotMeasured]:
    """Find the disk full."""
    raise StorageError("the disk is full")
    yield


def draws(saes: Sequence[SubjectSae], context: EvaluationContext, options: Any) -> Iterator[Measured | NotMeasured]:
    """Score each SAE by a number that is drawn."""
    for one in saes:
        drawn = torch.rand((), generator=context.generator("drawn"))
        yield Measured(one.job_id, [Score("drawn", float(drawn))])


def keeps(saes: Sequence[SubjectSae], context: EvaluationContext, options: Any) -> Iterator[Measured | NotMeasured]:
    """Score each SAE by what is kept for later evaluations."""
    for one in saes:
        kept = context.store.get({"what": "seven"}, lambda: {"seven": torch.tensor(7.0)})
        yield Measured(one.job_id, [Score("kept", float(kept["seven"]))])


def loaded(saes: Sequence[SubjectSae], context: EvaluationContext, options: Any) -> Iterator[Measured | NotMeasured]:
    """Score each SAE by how many are in memory."""
    for one in saes:
        yield Measured(one.job_id, [Score("loaded", n_in_memory())])


def n_in_memory() -> int:
    return sum(type(thing) is InferenceSae for thing in gc.get_objects())


FAMILIES = {
    "n2g": loaded,
    "reconstruction": counts, "downstream": breaks, "probes": is_full, "structure": draws, "ablation": keeps,
}  # fmt: skip


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Channel:
    monkeypatch.setattr(registry, "family", FAMILIES.__getitem__)
    monkeypatch.setattr(registry, "in_order", lambda: tuple(FAMILIES))
    monkeypatch.setattr(run_module, "check_family", lambda *_: None)  # what is made up here reads no text
    return Channel()


def order(folder: Path, *jobs: int, metrics: Sequence[str], measured: Sequence[str] = ()) -> EvaluationOrder:
    facts = SaeFacts(
        selection="topk", k=2, d_model=8, n_latents=16, normalize="none", subtracts_bias=True, dtype="float32",
        subject=DISTRIBUTION,
    )  # fmt: skip
    tensors = {
        "W_enc": torch.randn(8, 16), "W_dec": torch.randn(16, 8), "b_enc": torch.zeros(16), "b_dec": torch.zeros(8),
    }  # fmt: skip
    checked_folder.write_folder(folder / "sae", portable.fill(InferenceSae(facts, tensors)))
    config = EvaluationConfig(
        plan=EvaluationPlan(metrics=cast(Any, tuple(metrics))), sae=EvaluatedSaeRef(id=1),
        subject=SubjectConfig(model=DISTRIBUTION), data=DataConfig(), heldout_tokens=64,
    )  # fmt: skip
    assignments = [
        EvaluationAssignment(
            job, 1, config, EvaluatedSae(uri=str(folder / ("sae" if job != 9 else "gone")), label=f"sae:{job}",
            facts=facts.as_json()), str(folder / "kept" / str(job)), tuple(measured),
        )
        for job in jobs
    ]  # fmt: skip
    made = EvaluationOrder(tuple(assignments), "", str(folder / "shared"), "", "cpu", 1, supervisor=0)
    again = EvaluationOrder.from_json(made.to_json())
    assert again == made
    return again


def run(asked: EvaluationOrder, channel: Channel) -> None:
    EvaluationRun(asked, channel).run()


@pytest.mark.skipif(c_compiler() is None, reason="no C compiler")
def test_kernels_are_used_unless_nothing_may_be_compiled(tmp_path: Path, channel: Channel) -> None:
    asked = order(tmp_path, 1, metrics=["reconstruction"])
    for wanted, is_used in (("auto", True), ("off", False)):  # off after auto: the process may have trained before
        EvaluationRun(replace(asked, compile=wanted, compile_folder=str(tmp_path / wanted)), channel)
        assert (kernels_for() is not None) == is_used
        assert (tmp_path / wanted).exists() == is_used


def test_one_sae_that_fails_takes_nobody_with_it(tmp_path: Path, channel: Channel) -> None:
    run(order(tmp_path, 1, 2, 3, 9, metrics=["reconstruction"]), channel)
    for job in (1, 3):
        started, scored, evaluated = channel.of(job)
        assert isinstance(started, Started)
        assert isinstance(scored, Scored)
        assert isinstance(evaluated, Evaluated)
        assert (scored.scores[0]["value"], scored.scores[0]["details"]) == (64, {"nan": None})
        assert (scored.tokens, scored.measured_on) == (64, DISTRIBUTION)
        assert scored.files_uri
        checked_folder.verify(Path(scored.files_uri))
        assert (Path(scored.files_uri) / "of.json").read_text() == f'{{"label": "sae:{job}", "infinite": null}}'
    assert channel.of(2)[1:2] == [NotScored("reconstruction", "ConfigError", "it cannot be counted", "try another")]
    assert isinstance(channel.of(2)[-1], Evaluated)
    (gone,) = channel.of(9)
    assert isinstance(gone, Failure)
    assert (gone.code, gone.message) == (78, f"the files of sae:9 are gone: there is no folder {tmp_path / 'gone'}")


def test_a_family_that_needs_what_the_sae_has_not_is_refused_and_the_others_measured(tmp_path: Path) -> None:
    """As a request refuses it: one of an earlier version did not, and of some models only the worker knows."""
    channel = Channel()
    run(order(tmp_path, 1, metrics=["n2g", "reconstruction"]), channel)
    started, scored, refused, evaluated = channel.of(1)
    assert isinstance(started, Started)
    assert isinstance(evaluated, Evaluated)
    assert isinstance(scored, Scored)
    assert isinstance(refused, NotScored)
    assert (scored.family, refused.family, refused.kind) == ("reconstruction", "n2g", "SubjectError")
    assert refused.message == f"{DISTRIBUTION} is no language model: no text can be run through it"


def test_an_sae_that_only_another_machine_can_see(tmp_path: Path, channel: Channel) -> None:
    asked = order(tmp_path, 1, metrics=["reconstruction"])
    moved = EvaluatedSae(uri=str(tmp_path / "not" / "mounted"), label="sae:1", facts=asked.jobs[0].evaluated.facts)
    run(replace(asked, jobs=(replace(asked.jobs[0], evaluated=moved),)), channel)
    (elsewhere,) = channel.of(1)
    assert isinstance(elsewhere, Failure)
    assert (elsewhere.kind, elsewhere.code) == ("CheckpointsElsewhere", 74)


def test_a_family_that_breaks_leaves_the_others(tmp_path: Path, channel: Channel) -> None:
    run(order(tmp_path, 1, 3, metrics=["downstream", "reconstruction"]), channel)
    assert [type(message) for message in channel.of(1)] == [Started, Scored, Scored, Evaluated]
    assert [type(message) for message in channel.of(3)] == [Started, Scored, NotScored, Evaluated]
    (broken,) = [message for message in channel.of(3) if isinstance(message, NotScored)]
    assert (broken.family, broken.kind, broken.message) == ("downstream", "ZeroDivisionError", "no more")


def test_what_the_machine_cannot_do_is_left_to_another_attempt(tmp_path: Path, channel: Channel) -> None:
    run(order(tmp_path, 1, metrics=["probes", "reconstruction"]), channel)
    assert [type(message) for message in channel.of(1)] == [Started, Scored, Failure]
    again = Channel()
    run(order(tmp_path, 1, metrics=["probes", "reconstruction"], measured=["reconstruction"]), again)
    assert [type(message) for message in again.of(1)] == [Started, Failure], "what is measured is not measured again"


def test_a_dropped_job_is_left_and_the_others_go_on(tmp_path: Path, channel: Channel) -> None:
    channel.drops = [DropJob(3, save=True)]
    run(order(tmp_path, 1, 3, metrics=["reconstruction", "downstream"]), channel)
    assert [type(message) for message in channel.of(3)] == [Started, Left]
    assert [type(message) for message in channel.of(1)] == [Started, Scored, Scored, Evaluated]


def test_an_evaluation_ends_with_its_own_last_family(tmp_path: Path, channel: Channel) -> None:
    asked = order(tmp_path, 1, 3, metrics=["reconstruction", "structure"])
    few = replace(asked.jobs[0], measured=("structure",))
    run(replace(asked, jobs=(few, asked.jobs[1])), channel)
    said = [(job, type(message)) for job, message in channel.said]
    assert said.index((1, Evaluated)) < max(at for at, one in enumerate(said) if one == (3, Scored))
    assert [said.count((job, Evaluated)) for job in (1, 3)] == [1, 1]
    assert [said.count((job, Scored)) for job in (1, 3)] == [1, 2]


def test_an_order_that_has_nothing_left_to_measure_ends(tmp_path: Path, channel: Channel) -> None:
    run(order(tmp_path, 1, metrics=["reconstruction"], measured=["reconstruction"]), channel)
    assert [type(message) for message in channel.of(1)] == [Started, Evaluated]


def test_each_sae_is_measured_with_the_seed_of_its_own_evaluation(tmp_path: Path, channel: Channel) -> None:
    asked = order(tmp_path, 1, 3, 4, metrics=["structure"])
    config = asked.jobs[1].config
    other = config.model_copy(update={"plan": config.plan.model_copy(update={"seed": 1})})
    together = replace(asked, jobs=(asked.jobs[0], replace(asked.jobs[1], config=other), asked.jobs[2]))
    run(together, channel)
    alone = Channel()
    run(replace(together, jobs=together.jobs[1:2]), alone)
    drawn = {job: channel.of(job)[1] for job in (1, 3, 4)} | {"alone": alone.of(3)[1]}
    values = {job: one.scores[0]["value"] for job, one in drawn.items() if isinstance(one, Scored)}
    assert values[1] == values[4] != values[3] == values["alone"]


def test_what_cannot_be_kept_is_measured_all_the_same_and_said_once(
    tmp_path: Path, channel: Channel, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = order(tmp_path, 1, 3, metrics=["ablation"])
    run(asked, channel)
    assert capsys.readouterr().out == "", "what is kept needs no word"
    (tmp_path / "file").write_text("in the place of the folder")
    refused = Channel()
    run(replace(asked, store_folder=str(tmp_path / "file")), refused)
    for job in (1, 3):
        (scored,) = [message for message in refused.of(job) if isinstance(message, Scored)]
        assert scored.scores[0]["value"] == 7
        assert isinstance(refused.of(job)[-1], Evaluated)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: not kept for later evaluations: ")
    assert str(tmp_path / "file") in line


def test_no_more_saes_are_loaded_at_once_than_there_is_room_for(
    tmp_path: Path, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = order(tmp_path, 1, 3, 4, 5, metrics=["n2g"])
    gc.collect()
    before = n_in_memory()
    assert asked.jobs[0].evaluated.n_bytes == 8 * 8 * 16
    monkeypatch.setattr(run_module, "free_in_memory", lambda: 4 * 2 * 8 * 8 * 16)
    run(asked, channel)
    found = {job: channel.of(job) for job in (1, 3, 4, 5)}
    assert all([type(one) for one in messages] == [Started, Scored, Evaluated] for messages in found.values())
    counts = [
        one.scores[0]["value"] - before for messages in found.values() for one in messages if isinstance(one, Scored)
    ]
    assert counts == [2, 2, 2, 2], "a quarter of what is free holds two"
    monkeypatch.setattr(run_module, "free_in_memory", lambda: 0)
    alone = Channel()
    run(asked, alone)
    assert [one.scores[0]["value"] - before for _, one in alone.said if isinstance(one, Scored)] == [1, 1, 1, 1]


def test_of_nothing_there_is_no_value() -> None:
    """None of no latents follows its position: that is not known to be so."""
    assert Score("position_latents", 0.0, "later", n=0).told()["value"] is None
    assert Score("position_latents", 0.0, "later", n=9).told()["value"] == 0
