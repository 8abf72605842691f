"""Ablation sparsity: its limits, and that what is run is what it says, held against whole forward passes."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.config.activation_functions import Activation
from orchestrator.config.evaluation.ablation import ABLATION_VARIANTS, AblationOptions, AblationVariant
from orchestrator.config.job import Normalize
from orchestrator.errors import ConfigError
from tests.made_saes import gated, made
from tests.unit.worker.evaluation.tiny_contexts import constant_sae, entries, random_sae, tiny_context
from worker.evaluation.ablation import measure
from worker.evaluation.ablation.effects import affected_share, without_median
from worker.evaluation.ablation.family import AblationRun, choose_latents
from worker.evaluation.ablation.positions import WIDTH, draw_windows
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, NotMeasured
from worker.subject.model import run_patched

SMALL = AblationOptions(pairs=96, affected_tokens=4, variants=ABLATION_VARIANTS)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_context(tmp_path_factory.mktemp("place"))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def share_of(delta: Tensor) -> float:
    """Return the share of one row of differences (n_tokens, vocabulary), added to logits of the usual size."""
    clean = torch.randn(delta.shape, generator=rng(9), dtype=torch.float64)
    return float(affected_share((clean + delta)[None], clean, torch.zeros(1, dtype=torch.long)))


def test_limits() -> None:
    """(L1/L2)²/N: one-hot 1/N, i.i.d. normal 2/π, i.i.d. Laplace 1/2, constant magnitude 1."""
    tokens, vocabulary = 16, 5001
    one_hot = torch.zeros(tokens, vocabulary, dtype=torch.float64)
    one_hot[3, 77] = 2.0
    assert share_of(one_hot) == pytest.approx(1 / (tokens * vocabulary), rel=1e-9)
    normal = torch.randn(tokens, vocabulary, generator=rng(), dtype=torch.float64)
    assert share_of(normal) == pytest.approx(2 / math.pi, rel=0.01)
    laplace = normal.sign() * torch.empty_like(normal).exponential_(generator=rng(1))
    assert share_of(laplace) == pytest.approx(0.5, rel=0.02)
    signs = normal.sign()
    signs[:, 0] = 0  # as many up as down: the median is the one between
    signs[:, 1:] = torch.tensor([1.0, -1.0]).repeat(tokens, vocabulary // 2)
    assert share_of(signs) == pytest.approx(1 - 1 / vocabulary, rel=1e-6)
    shift = torch.randn(tokens, 1, generator=rng(2), dtype=torch.float64)
    assert share_of(one_hot + shift) == pytest.approx(1 / (tokens * vocabulary), rel=1e-6), "softmax sees no shift"
    assert math.isnan(share_of(torch.zeros(4, 11)))


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 64, 4096, 5001])
def test_the_median_is_exact(vocabulary: int) -> None:
    values = torch.randn(5, vocabulary, generator=rng()).round(decimals=1)
    found = without_median(values.clone())
    assert torch.equal(found.sort().values, (values - values.median(dim=1, keepdim=True).values).sort().values)


def test_windows_are_the_same_for_all_and_lie_where_they_may() -> None:
    is_measured = torch.ones(20, 100, dtype=torch.bool)
    is_measured[:, 0] = False
    is_measured[3] = False
    found = draw_windows(is_measured, 57, 16, rng())
    assert len(found) == 57
    assert {window.context for window in found} == set(range(20)) - {3}
    for window in found:
        assert window.length == int(window.at[-1]) + 16 <= 100
        assert is_measured[window.context, window.at].all()
        assert len(set((window.at // WIDTH).tolist())) == 1
    assert len(draw_windows(is_measured, 10_000, 16, rng())) == 19 * 6, "all there are"
    first = torch.cat([draw_windows(is_measured, 19, 16, rng(seed))[0].at for seed in range(1000)])
    counts = first.bincount(minlength=85)[1:85].double()
    assert counts.max() < 2 * counts.mean(), "no position is much likelier than another"
    with pytest.raises(ConfigError, match="affected_tokens"):
        draw_windows(is_measured, 5, 101, rng())


def whole_forward(context: EvaluationContext, ids: Tensor, values: Tensor) -> Tensor:
    """Return the logits (length, vocabulary) with the activations of one context replaced."""
    return run_patched([context.model()[0]], ids, [lambda _: values[None]])[0]


@pytest.mark.parametrize("variant", ABLATION_VARIANTS)
@pytest.mark.parametrize(
    ("activation", "normalize"),
    [("topk", "unit"), ("topk", "none"), ("batchtopk", "layer_norm"), ("jumprelu", "unit"), ("relu", "layer_norm")],
)
def test_pairs_are_those_of_whole_forward_passes(
    context: EvaluationContext, activation: Activation, normalize: Normalize, variant: AblationVariant
) -> None:
    """By hand: decode with and without the latent, patch the whole model, all positions, no tricks."""
    sae = made(activation, normalize)
    run = AblationRun(context, SMALL)
    window = run.windows[1]
    _, text = context.model()
    x = context.heldout_activations[window.context, : window.length]
    chosen = choose_latents(sae, variant, window, x, rng(), context=context)
    found = run._effects.shares(window, chosen.ablations)
    ids = text.heldout.ids[window.context : window.context + 1, : window.length]
    checked = range(0, len(found), 5)
    for row in checked:
        at, latent = int(chosen.ablations.at[row]), int(chosen.numbers[row])
        acts = sae.encode(x)
        full = sae.decode(acts)
        assert acts[at, latent] > 0
        sae.encode(x)
        acts[:, latent] = 0
        change = full - sae.decode(acts)
        is_there = (torch.arange(len(x)) == at)[:, None]
        base = torch.where(is_there, full, x) if variant == "no error" else x
        ablated = base - change if variant == "from start" else torch.where(is_there, base - change, base)
        clean, patched = (whole_forward(context, ids, values) for values in (base, ablated))
        delta = (patched - clean)[at : at + 4].double()
        delta -= delta.median(dim=1, keepdim=True).values
        by_hand = delta.abs().sum() ** 2 / delta.square().sum() / delta.numel()
        assert float(found[row]) == pytest.approx(float(by_hand), rel=2e-3)


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gemma2", "opt"])
def test_other_architectures_and_sites(tmp_path: Path, family: str) -> None:
    for site in ("resid_post", "mlp_delta"):
        context = tiny_context(tmp_path, family=family, site=site)
        (found,) = measure(entries(random_sae(16)), context, replace_variants("one position"))
        assert isinstance(found, Measured)
        value = found.scores[0].value
        assert 0 < value < 1


def replace_variants(*variants: AblationVariant) -> AblationOptions:
    return SMALL.model_copy(update={"variants": variants})


def test_scores_are_paired_and_repeat_and_one_failure_is_alone(context: EvaluationContext) -> None:
    transcoder = made("relu")
    silent = constant_sae(torch.zeros(16))
    facts = replace(transcoder.facts, target_hook_point="elsewhere")
    saes = entries(made("topk", "unit"), gated(), transcoder.changed({}, facts=facts), silent)
    found = {one.job_id: one for one in measure(saes, context, SMALL)}
    for job_id, word in ((3, "transcoder"), (4, "no latent is active")):
        failed = found.pop(job_id)
        assert isinstance(failed, NotMeasured)
        assert word in str(failed.error)
    for one in found.values():
        assert isinstance(one, Measured)
        scores = {(s.metric, s.variant): s for s in one.scores}
        assert len(scores) == len(one.scores) == 13
        assert set(one.files["pairs.json"]) == set(ABLATION_VARIANTS)
        for score in one.scores:
            assert score.low is not None
            assert score.high is not None
            assert score.low <= score.value <= score.high
        own, theirs = scores["ablation_sparsity", ""], scores["ablation_sparsity", "channels"]
        assert scores["ablation_ratio", "channels"].value == pytest.approx(own.value / theirs.value)
        assert scores["ablation_ratio", "channels from start"].value == pytest.approx(
            scores["ablation_sparsity", "from start"].value / scores["ablation_sparsity", "channels from start"].value
        )
        pairs = one.files["pairs.json"]["one position"]
        weights = torch.tensor(pairs["weight"])
        mean = float((torch.tensor(pairs["share"]) * weights).sum() / weights.sum())
        assert own.value == pytest.approx(mean, abs=1e-5)
        assert own.n == len(pairs["share"])
    again = {one.job_id: one for one in measure(saes[:1], context, SMALL)}
    assert again[1] == found[1], "alone or with others, baselines from the store or not"


def test_a_latent_counts_for_those_that_were_not_drawn(context: EvaluationContext) -> None:
    """Pairs stand for all active pairs: at a position with 9 active latents, 4 drawn ones count 9/4 each."""
    run = AblationRun(context, SMALL)
    sae = random_sae(16, k=9)
    x = context.heldout_activations[run.windows[0].context, : run.windows[0].length]
    chosen = choose_latents(sae, "one position", run.windows[0], x, rng(), context=context)
    n_positions = len(run.windows[0].at)
    assert len(chosen.numbers) == 4 * n_positions
    active = (sae.encode(x[run.windows[0].at]) > 0).sum()
    assert float(chosen.weights.sum()) == pytest.approx(float(active))
    assert len({(int(a), int(b)) for a, b in zip(chosen.ablations.at, chosen.numbers, strict=True)}) == 4 * n_positions
