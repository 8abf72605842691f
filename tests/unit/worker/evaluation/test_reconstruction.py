"""fvu and L0 of the held-out set, and what is measured beside them, by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from orchestrator.config.job import SaeConfig
from orchestrator.config.validation import parse
from tests.made_saes import ACTIVATIONS, NORMALIZATIONS, facts, gated, made, trained
from tests.unit.worker.evaluation.tiny_contexts import constant_sae, entries, identity_sae, random_sae, tiny_context
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, NotMeasured, Score
from worker.evaluation.reconstruction import measure, measure_reconstruction
from worker.sae.inference import InferenceSae, normalized
from worker.sae.model import SparseAutoencoder
from worker.sae.normalize import normalize
from worker.sae.train_state import TrainState

D_MODEL = 12


def test_fvu_by_hand_and_however_the_set_is_cut() -> None:
    model = SparseAutoencoder(SaeConfig(n_latents=4, k=1), D_MODEL)
    x = functional.normalize(torch.randn(100, D_MODEL, generator=torch.Generator().manual_seed(0)), dim=1) + 3
    with torch.no_grad():
        model.b_pre.copy_(x.mean(0))
    assert measure_reconstruction(model, x).fvu == pytest.approx(1.0, rel=1e-5)  # the mean explains nothing
    model = TrainState.fresh(parse({"sae": {"n_latents": 48, "k": 3}}), x).model
    whole = measure_reconstruction(model, x, chunk_tokens=100)
    found = model(x)
    by_hand = (x - found).double().square().sum() / (x.double() - x.double().mean(0)).square().sum()
    assert whole.fvu == pytest.approx(by_hand.item(), rel=1e-6)
    for chunk in (1, 7, 64):
        assert measure_reconstruction(model, x, chunk_tokens=chunk).fvu == pytest.approx(whole.fvu, rel=1e-6)
        assert measure_reconstruction(model, x, chunk_tokens=chunk).l0 == whole.l0


def scores_of(context: EvaluationContext, sae: InferenceSae) -> dict[tuple[str, str], Score]:
    (found,) = measure(entries(sae), context, None)
    assert isinstance(found, Measured), found
    return {(s.metric, s.variant): s for s in found.scores}


SELECTIONS = [*(made(activation, normalize) for activation in ACTIVATIONS for normalize in NORMALIZATIONS), gated()]


@pytest.mark.parametrize("sae", SELECTIONS, ids=lambda sae: f"{sae.facts.selection}-{sae.facts.normalize}")
def test_every_score_by_hand(tmp_path: Path, sae: InferenceSae) -> None:
    context = tiny_context(tmp_path)
    x = context.vectors
    found = {key: score.value for key, score in scores_of(context, sae).items()}
    y, z, d = sae(x).double(), sae.encode(x).double(), x.shape[1]
    vectors = normalized(sae, x).vectors.double()
    normalised = (y - normalized(sae, x).mean) / normalized(sae, x).scale
    x = x.double()
    error, spread = (x - y).square().sum(1), (x - x.mean(0)).square().sum(1)
    square = x.square().sum(1).mean()
    wanted = {
        ("fvu", "raw"): error.sum() / spread.sum(),
        ("fvu", ""): (vectors - normalised).square().sum() / (vectors - vectors.mean(0)).square().sum(),
        ("mse", "raw"): error.mean(),
        ("mse", ""): (vectors - normalised).square().sum(1).mean(),
        ("explained_variance", "raw"): 1 - error.sum() / spread.sum(),
        ("explained_variance", "saebench"): 1 - error.mean() / (square - (square / d) ** 2),
        ("explained_variance", "saebench legacy"): (1 - error / spread).mean(),
        ("cosine", ""): ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))).mean(),
        ("norm_ratio", ""): (y.norm(dim=1) / x.norm(dim=1)).mean(),
        ("relative_bias", ""): y.square().sum(1).mean() / (x * y).sum(1).mean(),
        ("l0", ""): (z > 0).sum(1).double().mean(),
        ("l1", ""): z.sum(1).mean(),
        ("alive", ""): (z > 0).any(0).double().mean(),
        ("density", ""): (z > 0).double().mean(),
    }
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), key


def test_intervals_and_numbers(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    found = scores_of(context, random_sae(16))
    for key, score in found.items():
        if key[0] in {"alive", "density"}:
            assert score.n == 24
            continue
        assert score.n == len(context.vectors)
        assert score.low is not None
        assert score.high is not None
        assert score.low <= score.value <= score.high
        assert score.std_error is not None
    details = found["density", ""].details
    assert sum(details["counts"]) + details["never"] == 24
    assert len(details["log10_edges"]) == len(details["counts"]) + 1


def test_a_perfect_and_a_constant_reconstruction(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    perfect, constant = scores_of(context, identity_sae(16)), scores_of(context, constant_sae(context.vectors.mean(0)))
    assert perfect["fvu", "raw"].value < 1e-12
    for name in ("cosine", "norm_ratio", "relative_bias"):
        assert perfect[name, ""].value == pytest.approx(1, abs=1e-6)
    assert constant["fvu", "raw"].value == pytest.approx(1, abs=1e-5)
    assert constant["alive", ""].value == constant["l0", ""].value == 0


def test_training_and_evaluation_agree(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    model = trained("topk", "unit")
    sae = InferenceSae.from_trained(model, facts("topk", "unit"))
    found = scores_of(context, sae)
    training = measure_reconstruction(model, normalize(context.vectors, "unit").vectors)
    assert found["fvu", ""].value == pytest.approx(training.fvu, rel=1e-5)
    assert found["l0", ""].value == pytest.approx(training.l0)


@pytest.mark.parametrize(("mean", "constant", "wanted"), [(1.0, 0.0, 2.0), (1.0, 1.0, 1.0)])
def test_fvu_of_a_normal_distribution(tmp_path: Path, mean: float, constant: float, wanted: float) -> None:
    """Fixture G7: x ~ N(1, 1), x̂ = 0 gives 2, x̂ = 1 gives 1, x̂ = x gives 0."""
    drawn = mean + torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    context = replace(tiny_context(tmp_path), drawn=drawn, subject=None, text=None)
    found = scores_of(context, constant_sae(torch.full((8,), constant)))["fvu", "raw"]
    assert found.low is not None
    assert found.high is not None
    assert found.low - 0.01 < wanted < found.high + 0.01
    assert found.high - found.low < 0.05
    assert scores_of(context, identity_sae(8))["fvu", "raw"].value < 1e-12


def test_one_sae_that_cannot_be_measured_leaves_the_others(tmp_path: Path) -> None:
    context = tiny_context(tmp_path)
    endless = random_sae(16)
    endless.b_dec.data[0] = float("nan")
    found = [*measure(entries(random_sae(15), endless, random_sae(16)), context, None)]
    assert [type(one) for one in found] == [NotMeasured, NotMeasured, Measured]


def test_each_vector_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tiny_context(tmp_path)
    n_encoded: list[int] = []
    products = InferenceSae._pre_acts

    def counted(self: InferenceSae, vectors: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        n_encoded.append(len(vectors))
        return products(self, vectors, bias)

    monkeypatch.setattr(InferenceSae, "_pre_acts", counted)
    for sae in (random_sae(16), constant_sae(torch.ones(16))):
        n_encoded.clear()
        scores_of(context, sae)
        assert sum(n_encoded) == len(context.vectors)
