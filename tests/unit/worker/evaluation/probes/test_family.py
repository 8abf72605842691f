"""The family on the shipped subject: planted latents are found, what cannot be measured is said, the rest arrives."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.config.evaluation.probes import ProbesOptions, ProbeTask
from orchestrator.errors import ConfigError
from tests.unit.worker.evaluation.probes.small_context import context_of, measured, relu_sae, scores
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, NotMeasured
from worker.evaluation.probes import features, fitting, logistic
from worker.evaluation.probes.baselines import Baselines
from worker.evaluation.probes.features import Part, TaskSet, load_task_set
from worker.evaluation.probes.fitting import Found, Projection, sparse_probes, train_losses
from worker.evaluation.probes.scores import BASELINES, TaskScores, draw_weights, scores_of
from worker.evaluation.probes.sources import open_sources
from worker.subject.model import read

FEW = {"train_examples": 240, "test_examples": 120, "bootstraps": 200}
COLOURS, BEASTS = ("red", "blue", "green", "white"), ("cow", "cat", "dog", "bird")


def table(path: Path, *, words: bool = False) -> Path:
    """Write texts that end in the name of a beast or of a colour, which is the label."""
    generator = np.random.default_rng(0)
    lines = ["split,label,text"]
    for i in range(240):
        label, names = ("beast", BEASTS) if i % 2 else ("colour", COLOURS)
        text = f"item {generator.integers(1000)} is {generator.choice(names)}"
        lines.append(f"{'test' if i % 3 == 0 else 'train'},{label},{text}")
    path.write_text("\n".join(lines))
    return path


def loaded(context: EvaluationContext) -> TaskSet:
    options = context.config.plan.probes
    [source] = open_sources(options.tasks[0], options, 0, lambda: None)
    return load_task_set(source, context, options, lambda: None)


def hand_made(vectors: Tensor, labels: Tensor, n_train: int) -> TaskSet:
    """Return one task of vectors, each a text of its own."""

    def part(rows: slice) -> Part:
        return Part(vectors[rows], None, labels[None, rows], torch.arange(len(labels))[rows])

    return TaskSet(("made",), {}, "last", part(slice(0, n_train)), part(slice(n_train, None)), {})


def test_the_shipped_tasks_end_to_end(tmp_path: Path) -> None:
    phases: list[tuple[str, float]] = []
    context = context_of(
        tmp_path, lambda phase, share: phases.append((phase, share)), **FEW, k=(1, 2, 300), context_length=48
    )
    tasks = ("in_string", "in_comment", "in_decorator", "in_class_body", "after_return")
    generator = torch.Generator().manual_seed(0)
    saes = [relu_sae(torch.randn(128, n, generator=generator)) for n in (64, 200)]
    found = measured(context, *saes)
    assert [one.job_id for one in found] == [0, 1]
    for one, sae in zip(found, saes, strict=True):
        values = scores(one)
        assert isinstance(one, Measured)
        assert set(one.files["probes.json"]["tasks"]) == set(tasks)
        for score in one.scores:
            assert math.isfinite(score.value)
            if score.variant != "same split":
                assert score.std_error is not None
                assert score.low is not None
                assert score.high is not None
                assert score.low <= score.value + 3 * score.std_error
        assert values["probe_loss", "constant"].value == pytest.approx(math.log(2), abs=0.01)
        assert values["probe_loss", "same split"].value < values["probe_loss", ""].value < math.log(2)
        assert values["probe_loss", "k=1"].value == values["probe_loss", ""].value
        assert values["probe_balanced_accuracy", "constant"].value == 0.5
        gain = values["probe_loss", "channels"].value - values["probe_loss", ""].value
        assert values["probe_gain", "channels"].value == pytest.approx(gain)
        assert values["probe_loss", "task=in_comment"].details["latent"] < sae.facts.n_latents
    for one, most in zip(found, (64, 200), strict=True):
        left_out = scores(one)["probe_loss", ""].details["left_out"]
        assert left_out == {"k=300": f"sparse probes choose from {most} latents"}
    assert scores(found[0])["probe_loss", "channels"] == scores(found[1])["probe_loss", "channels"]
    shares = [share for _, share in phases]
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    again = measured(context, *saes)
    assert [one.scores for one in again if isinstance(one, Measured)] == [
        one.scores for one in found if isinstance(one, Measured)
    ]


def test_what_belongs_to_the_model_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(tmp_path, tasks=[str(table(tmp_path / "names.csv"))])
    sae = relu_sae(torch.randn(128, 20, generator=torch.Generator().manual_seed(0)))
    [first] = measured(context, sae)
    captured: list[int] = []
    fitted: list[int] = []
    monkeypatch.setattr(features, "read", lambda *_: captured.append(1))

    def fit_each(z: Tensor, labels: Tensor, *, ridge: float) -> logistic.SingleProbes:
        fitted.append(len(z))
        return logistic.fit_each(z, labels, ridge=ridge)

    monkeypatch.setattr(fitting, "fit_each", fit_each)
    [second] = measured(context, sae)
    assert isinstance(first, Measured)
    assert isinstance(second, Measured)
    assert first.scores == second.scores
    assert captured == []
    assert fitted == [20]  # its own latents alone


def test_a_planted_latent_is_found_and_one_sae_does_not_take_the_others(tmp_path: Path) -> None:
    context = context_of(tmp_path, tasks=[str(table(tmp_path / "names.csv"))])
    tasks = loaded(context)
    x, y = tasks.train.vectors.double(), tasks.train.labels[0]
    centred = x - x.mean(0)
    direction = torch.linalg.solve(centred.T @ centred / len(x) + 0.01 * torch.eye(128), x[y].mean(0) - x[~y].mean(0))
    W_enc = torch.randn(128, 30, generator=torch.Generator().manual_seed(0))
    W_enc[:, 17] = direction.float()
    W_enc[:, 4] = 2 * direction.float()  # a duplicate
    good, dead = relu_sae(W_enc), relu_sae(W_enc, torch.full((30,), -1e4))
    broken = relu_sae(W_enc.clone())
    with torch.no_grad():
        broken.W_enc.fill_(torch.nan)
    narrow = relu_sae(torch.randn(64, 30))
    found = measured(context, good, broken, dead, narrow)
    assert [type(one) for one in found] == [Measured, NotMeasured, Measured, NotMeasured]
    for one in (found[0], found[2]):  # a latent that never fires has a pre-activation all the same
        values = scores(one)
        assert values["probe_loss", "task=names"].details["latent"] in (4, 17)
        assert values["probe_balanced_accuracy", ""].value > 0.95
        assert values["probe_gain", "channels"].value > 0


def test_what_cannot_be_measured_is_said_and_the_rest_arrives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = table(tmp_path / "names.csv")
    (tmp_path / "one.csv").write_text("split,label,text\n" + "train,a,x\ntest,a,y\n" * 9)
    (tmp_path / "empty.csv").write_text("split,label,text\n")
    sources = [str(tmp_path / name) for name in ("one.csv", "empty.csv", "gone.csv")]
    context = context_of(tmp_path, tasks=[*sources, str(good)])
    sae = relu_sae(torch.randn(128, 20, generator=torch.Generator().manual_seed(0)))
    [found] = measured(context, sae)
    left_out = scores(found)["probe_loss", ""].details["left_out"]
    assert left_out["one"] == "there are no examples to fit on" or "one label" in left_out["one"]
    assert left_out["empty"] == "there are no examples to fit on"
    assert "there is no file or folder" in left_out[sources[2]]
    said = capsys.readouterr().out
    assert all(f"warning: probes: task {name} is left out: {why}" in said for name, why in left_out.items())
    assert scores(found)["probe_loss", ""].n == 1
    wrong = ProbesOptions(tasks=sources[:2])
    plan = context.config.plan.model_copy(update={"probes": wrong})
    with pytest.raises(ConfigError, match=r"no task can be measured: one: .*; empty: there are no examples"):
        measured(replace(context, config=context.config.model_copy(update={"plan": plan})), sae)


class Told(Exception):
    """What a process raises that has to end."""


def test_it_ends_where_it_is_told_to(tmp_path: Path) -> None:
    def progress(phase: str, share: float) -> None:
        if "sae 0" in phase:
            raise Told

    context = context_of(tmp_path, progress, tasks=[str(table(tmp_path / "names.csv"))])
    with pytest.raises(Told):
        measured(context, relu_sae(torch.randn(128, 20)))


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bos", [False, True])
def test_features_are_those_of_the_text_alone(tmp_path: Path, pooling: str, bos: bool) -> None:
    context = context_of(tmp_path, tasks=[str(table(tmp_path / "names.csv"))], pooling=pooling, context_length=20)
    data = context.config.data.model_copy(update={"prepend_bos": bos})
    context = replace(context, config=context.config.model_copy(update={"data": data}))
    subject, _ = context.model()
    if subject.tokenizer.bos_token_id is None:
        subject.tokenizer.bos_token = subject.tokenizer.eos_token
    tasks = loaded(context)
    W = torch.randn(128, 6, generator=torch.Generator().manual_seed(0))
    values = fitting.columns(tasks, tasks.test, Projection(6, lambda x, which: x @ W[:, which]), slice(None))
    rows = [line.split(",", 2) for line in (tmp_path / "names.csv").read_text().splitlines()]
    texts = [text for split, _, text in rows if split == "test"]
    wanted = []
    for text in dict.fromkeys(texts):
        ids = subject.tokenizer(text, add_special_tokens=False)["input_ids"][: 20 - bos]
        before = [subject.tokenizer.bos_token_id] if bos else []
        z = read([subject], torch.tensor([before + ids]))[0][0, bos:].float() @ W
        wanted.append({"last": z[-1], "mean": z.mean(0), "max": z.max(0).values}[pooling])
    assert len(wanted) == len(values)
    torch.testing.assert_close(values, torch.stack(wanted), atol=1e-3, rtol=1e-4)


def test_words_are_read_at_their_last_token(tmp_path: Path) -> None:
    lines = ["split,sentence,token_index,token,label,space_after"]
    for i in range(20):
        for j, word in enumerate(("def", "verylongname", "(", ")")):
            lines.append(f"{'test' if i % 2 else 'train'},{i},{j},{word}{i if j == 1 else ''},{j == 1},0")
    path = tmp_path / "words.csv"
    path.write_text("\n".join(lines))
    context = context_of(tmp_path, tasks=[str(path)], context_length=7)
    subject, _ = context.model()
    tasks = loaded(context)
    text = "defverylongname0()"
    encoded = subject.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in encoded["offset_mapping"]]
    last = next(i for i, end in enumerate(ends) if end >= len("defverylongname0"))
    acts = read([subject], torch.tensor([encoded["input_ids"]]))[0][0].float()
    n_kept = sum(start < len(text) and i < 7 for i, (start, _) in enumerate(encoded["offset_mapping"]))
    assert n_kept == 7 < len(ends) or len(ends) <= 7
    if last < 7:
        torch.testing.assert_close(tasks.train.vectors[1], acts[last], atol=1e-3, rtol=1e-4)
    assert tasks.train.labels[0, 1]


def test_sparse_probes_take_what_the_first_latent_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    n = 3000
    parts = torch.randn(n, 2, generator=generator)
    labels = (1.5 * parts[:, 0] + parts[:, 1]) > 0
    noise = torch.randn(n, 40, generator=generator)
    vectors = torch.cat([noise, parts, parts[:, :1] + 0.05 * torch.randn(n, 1, generator=generator)], dim=1)
    tasks = hand_made(vectors, labels, 2000)
    projection = Projection(43, lambda x, which: x[:, which])
    losses = train_losses(tasks, projection, 1e-6, lambda: None)
    found = sparse_probes(tasks, 0, projection, losses[0], k=(1, 2, 60), ridge=1e-6)
    assert found[1].columns == (40,)
    assert set(found[2].columns) == {40, 41}  # not 42, which is alone second, and the first once more
    assert found[2].train_loss < 0.1 < found[1].train_loss
    assert list(found) == [1, 2]  # there are no 60


def test_balanced_accuracy_and_loss_by_hand() -> None:
    labels = np.array([True, True, True, True, False, False])
    logits = torch.tensor([2.0, 1.0, -1.0, 3.0, -1.0, 2.0], dtype=torch.float64)
    tasks = hand_made(torch.zeros(12, 1), torch.from_numpy(np.tile(labels, 2)), 6)
    weights = draw_weights(tasks, 4000, np.random.default_rng(0))
    one = TaskScores("made", 6, labels, weights, {"": Found(logits, 0.1, (3,)), "constant": Found(logits * 0, 0.5)})
    assert one.accuracies[""].value == (3 / 4 + 1 / 2) / 2
    assert one.accuracies["constant"].value == 0.5
    by_hand = [math.log1p(math.exp(-t if y else t)) for t, y in zip(logits.tolist(), labels, strict=True)]
    assert one.losses[""].value == pytest.approx(np.mean(by_hand))
    assert one.losses[""].draws.std() == pytest.approx(np.std(by_hand) / math.sqrt(6), rel=0.05)
    assert one.gain("constant").value == pytest.approx(math.log(2) - np.mean(by_hand))
    found = {(s.metric, s.variant): s for s in scores_of([one], {}, np.random.default_rng(0))}
    assert found["probe_loss", "task=made"].n == 6
    assert found["probe_loss", "same split"].value == 0.1
    assert found["probe_loss", ""].std_error == pytest.approx(np.std(by_hand) / math.sqrt(6), rel=0.1)


def test_a_bootstrap_draws_texts() -> None:
    tasks = hand_made(torch.zeros(8, 1), torch.arange(8) % 2 == 0, 0)
    of_two = replace(tasks, test=replace(tasks.test, units=torch.tensor([7, 7, 7, 7, 9, 9, 9, 9])))
    weights = draw_weights(of_two, 50, np.random.default_rng(0))
    assert (weights[:, :4] == weights[:, :1]).all()
    assert (weights[:, 0] + weights[:, 4] == 2).all()


def test_random_directions_are_the_same_for_saes_of_any_width(tmp_path: Path) -> None:
    context = context_of(tmp_path, tasks=[str(table(tmp_path / "names.csv"))])
    tasks = loaded(context)
    known = Baselines(tasks, context, context.config.plan.probes, lambda: None)
    few, many = known.of(10)[0]["random"], known.of(5000)[0]["random"]
    assert few.columns[0] < 10
    assert many.train_loss < few.train_loss
    assert known.of(10)[0]["random"].columns == few.columns
    none = ProbesOptions(tasks=(ProbeTask(source="x"),), random_directions=0)
    assert set(Baselines(tasks, context, none, lambda: None).of(10)[0]) == {*BASELINES} - {"random"}
