"""Structure of SAEs: what was planted is found, and nothing else."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.config.activation_functions import Activation
from orchestrator.config.evaluation.structure import StructureOptions
from orchestrator.config.sae_facts import SaeFacts
from tests.made_saes import N_LATENTS, made
from tests.unit.worker.evaluation.tiny_contexts import tiny_context
from worker.checked_folder import write_folder
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import Text
from worker.evaluation.metric import Measured, NotMeasured, SubjectSae
from worker.evaluation.structure import activity, clusters, directions, measure, profiles, vocabulary
from worker.evaluation.structure.activity import Activity, Tokens, independent_vectors, measure_activity, tokens_of
from worker.evaluation.structure.density import density_scores
from worker.formats import portable
from worker.sae.inference import InferenceSae

SELECTIONS: tuple[Activation, ...] = ("topk", "batchtopk", "jumprelu", "relu")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> EvaluationContext:
    return tiny_context(tmp_path_factory.mktemp("place"))


@pytest.fixture(params=[1 << 24, 500])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (activity, directions, profiles):
        monkeypatch.setattr(module, "CHUNK_VALUES", request.param)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def identity_sae(n: int) -> InferenceSae:
    """Return an SAE whose latents are the positive parts of its input's channels."""
    facts = SaeFacts(selection="relu", d_model=n, n_latents=n, normalize="none", subtracts_bias=False, dtype="float32")
    tensors = {"W_enc": torch.eye(n), "W_dec": torch.eye(n), "b_enc": torch.zeros(n), "b_dec": torch.zeros(n)}
    return InferenceSae(facts, tensors)


def activity_of(values: Tensor, tokens: Tokens) -> Activity:
    return measure_activity(identity_sae(values.shape[1]), values, tokens, generator=rng(), advance=lambda _: None)


def random_text(n_contexts: int = 60, length: int = 32, vocabulary: int = 500) -> Text:
    ids = torch.randint(vocabulary, (n_contexts, length), generator=rng())
    return Text(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(n_contexts))


def test_effective_tokens_by_hand() -> None:
    squares = torch.tensor([[3.0] * 5 + [0.0] * 3, [7.0] + [0.0] * 7, [2.0, 1.0, 1.0] + [0.0] * 5, [0.0] * 8])
    found = vocabulary.effective_tokens(squares)
    assert found[:3].tolist() == pytest.approx([5, 1, np.exp(1.0397)], rel=1e-4)
    assert found[3].isnan()
    shares = squares[:3] / squares[:3].sum(1, keepdim=True)
    as_printed = (-torch.special.entr(shares).sum(1)).exp()  # exp(+Σ Ã ln Ã): 1/m, outside the range it states
    assert as_printed.tolist() == pytest.approx([1 / 5, 1, 1 / np.exp(1.0397)], rel=1e-4)


def test_effective_tokens_of_a_text_weigh_each_token_of_the_vocabulary_alike() -> None:
    """A latent that fires alike on a frequent token and on a rare one has two."""
    ids = torch.tensor([[0, 0, 0, 0, 0, 1, 2, 3]]).repeat(4, 1)
    text = Text(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(4))
    values = torch.stack([ids < 2, ids == 3], dim=-1).view(-1, 2).float()
    squares = activity_of(values, tokens_of(text)).squares
    assert squares is not None
    assert vocabulary.effective_tokens(squares).tolist() == pytest.approx([2, 1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n_latents", "share"), [(400, 0.25), (2000, 0.25), (1000, 0.4)])
def test_planted_blocks_come_back(seed: int, n_latents: int, share: float) -> None:
    d, generator = 64, rng(seed)
    n_small, d_small = int(n_latents * share), int(d * share)
    W = torch.zeros(n_latents, d)
    W[:n_small, :d_small] = torch.randn(n_small, d_small, generator=generator) * 3
    W[n_small:, d_small:] = torch.randn(n_latents - n_small, d - d_small, generator=generator)
    order = torch.randperm(n_latents, generator=generator)
    rotation = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    W_enc = (W[order] @ rotation).T
    found = clusters.two_clusters(clusters.squared_rows(W_enc))
    assert adjusted_rand(found.is_small, order < n_small) > 0.9
    assert found.is_small_dim.double().mean() == pytest.approx(share, abs=0.02)
    scores = {(s.metric, s.variant): s.value for s in clusters.cluster_scores(W_enc, found, generator)}
    assert scores["cluster_separation", ""] > 3 * scores["cluster_separation", "gaussian"]
    assert scores["cluster_latents", ""] == pytest.approx(share, abs=0.02)
    norms = W.norm(dim=1)
    assert scores["cluster_norm_ratio", ""] == pytest.approx(
        float(norms[:n_small].mean() / norms[n_small:].mean()), rel=0.05
    )


def adjusted_rand(found: Tensor, wanted: Tensor) -> float:
    """Return the adjusted Rand index (Hubert and Arabie 1985)."""
    table = np.array([[int((a & b).sum()) for b in (wanted, ~wanted)] for a in (found, ~found)])
    pairs = [float((counts * (counts - 1) / 2).sum()) for counts in (table, table.sum(1), table.sum(0), table.sum())]
    expected = pairs[1] * pairs[2] / pairs[3]
    return (pairs[0] - expected) / ((pairs[1] + pairs[2]) / 2 - expected)


def test_rows_of_few_latents_and_of_none() -> None:
    """Fewer latents than dimensions, and encoder vectors that are 0 or all the same."""
    for W_enc in (torch.randn(16, 5, generator=rng()), torch.zeros(8, 20), torch.ones(8, 20)):
        rows = clusters.squared_rows(W_enc)
        assert rows.isfinite().all()
        found = clusters.two_clusters(rows)
        assert found.is_small.sum() * 2 <= len(rows)
        assert np.isfinite(found.separation)


@pytest.mark.usefixtures("_chunks")
def test_planted_opposing_pairs_are_found() -> None:
    rows = torch.nn.functional.normalize(torch.randn(300, 64, generator=rng()), dim=1)
    rows[7] = -rows[123]
    rows[200] = torch.nn.functional.normalize(-rows[12] + 0.02 * torch.randn(64, generator=rng(1)), dim=0)
    density = torch.linspace(0, 0.2, 300)
    density[[7, 123]] = 0.9
    found = directions.opposing_pairs(rows)
    assert {(pair.first, pair.second) for pair in found} == {(7, 123), (12, 200)}
    everywhere, densest = directions.opposing_scores(found, density)
    assert (everywhere.value, densest.value) == (2, 1)


@pytest.mark.usefixtures("_chunks")
def test_recurrence_is_the_highest_cosine_and_the_best_matching() -> None:
    here = torch.nn.functional.normalize(torch.randn(80, 64, generator=rng()), dim=1)
    order = torch.randperm(80, generator=rng(1))
    there = torch.cat([here[order][:50], torch.nn.functional.normalize(torch.randn(10, 64, generator=rng(2)), dim=1)])
    found = directions.match(here, there, most_matched=100)
    cosines = here @ there.T
    assert torch.allclose(found.best, cosines.amax(1))
    assert torch.allclose(found.best_there, cosines.amax(0))
    assert found.matched is not None
    assert len(found.matched) == 60
    assert int((found.matched > 0.999).sum()) == 50
    scores = {s.metric: s for s in directions.match_scores(found, "other")}
    assert scores["recurring_share"].value == pytest.approx(50 / 80)
    assert scores["recurring_share"].details["back"] == pytest.approx(50 / 60)
    assert directions.match(here, there, most_matched=79).matched is None


def test_first_and_position_latents_are_found_and_others_are_not() -> None:
    """400 latents drift within a context, up or down: were tokens taken as independent, most would seem correlated."""
    text = random_text()
    tokens, generator = tokens_of(text), rng(3)
    where = torch.arange(32).repeat(60)
    drifting = 100 + torch.randn(60, 32, 400, generator=generator).cumsum(1).flatten(0, 1)
    values = torch.cat([torch.rand(1920, 6, generator=generator) * 0.1, drifting], dim=1)
    values[:, 0] = torch.where(where == 0, 14.7, values[:, 0] * (values[:, 0] > 0.07))  # first position, interference
    values[:, 1] = torch.where(where == 0, 3.0, 0.0)  # nowhere else
    values[:, 2] += where / 40
    values[:, 3] += (32 - where) / 40
    values[:, 4] = 1.0  # dense, the same everywhere
    found = activity_of(values, tokens)
    first = profiles.first_position_latents(identity_sae(406), values[where == 0], found)
    assert [one.latent for one in first] == [1, 0]
    assert first[1].mode == pytest.approx(14.7)
    assert first[1].ratio == pytest.approx(14.7 / 0.085, rel=0.05)
    by_position = profiles.all_correlations(found, tokens)["position"]
    assert by_position.is_found[:6].tolist() == [False, False, True, True, False, False]
    assert by_position.r[2] > 0.5
    assert by_position.r[3] < -0.5
    by_hand = torch.corrcoef(torch.stack([values[where > 0, 2], where[where > 0].float()]))[0, 1]
    assert float(by_position.r[2]) == pytest.approx(float(by_hand), abs=1e-5)
    assert int(by_position.is_found[6:].sum()) == 0
    assert int((by_position.r[6:].abs() > 1.96 / 1860**0.5).sum()) > 150


def test_repetition_is_beyond_token_and_position() -> None:
    """A latent of a frequent token fires on repeated tokens, and later; it is no repetition latent."""
    text = random_text(vocabulary=40)
    text.ids[:, ::3] = 7
    tokens = tokens_of(text)
    seen = torch.tensor([[int(row[t]) in row[:t].tolist() for t in range(32)] for row in text.ids]).flatten()
    noise = torch.rand(1920, 3, generator=rng(2)) * 0.2
    values = noise + torch.stack([seen.float(), (text.ids.flatten() == 7).float(), torch.zeros(1920)], dim=1)
    found = profiles.all_correlations(activity_of(values, tokens), tokens)["repetition"]
    assert found.is_found.tolist() == [True, False, False]


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("selection", SELECTIONS)
def test_sums_are_those_of_the_dense_activations(context: EvaluationContext, selection: Activation) -> None:
    one = made(selection, "layer_norm")
    assert context.text is not None
    tokens = tokens_of(context.text.heldout)
    told: list[float] = []
    found = measure_activity(one, context.vectors, tokens, generator=rng(), advance=told.append)
    acts = one.encode(context.vectors).double()
    assert told[-1] == 1
    for group, chosen in enumerate((tokens.is_first, ~tokens.is_first)):
        assert torch.equal(found.n_active[group], (acts[chosen] > 0).sum(0).double())
        for power in range(4):
            assert torch.allclose(found.powers[group, power], (acts[chosen] ** (power + 1)).sum(0))
    assert torch.equal(found.block_active.sum(0), (acts > 0).sum(0).double())
    assert torch.allclose(found.products.sum(1), tokens.regressors @ acts, atol=1e-3)
    assert float(found.n_tokens.sum()) == len(context.vectors)


def test_every_kind_of_sae_is_measured_and_one_that_fails_is_alone(context: EvaluationContext, tmp_path: Path) -> None:
    saes = [SubjectSae(i, f"job {i}", made(selection, "unit")) for i, selection in enumerate(SELECTIONS)]
    kept = tmp_path / "kept"
    write_folder(kept, portable.fill(saes[1].sae))
    narrow = SubjectSae(9, "narrow", identity_sae(12))
    write_folder(tmp_path / "slim", portable.fill(narrow.sae))
    against = (str(kept), str(tmp_path / "nowhere"), f"slim={tmp_path / 'slim'}", f"job 0={kept}")
    options = StructureOptions(against=against)
    found = {one.job_id: one for one in measure([*saes, narrow], context, options)}
    assert isinstance(found.pop(9), NotMeasured)
    for one in found.values():
        assert isinstance(one, Measured)
        scores = {(s.metric, s.variant): s for s in one.scores}
        assert len(scores) == len(one.scores)
        assert all(np.isfinite(s.value) for s in one.scores)
        assert scores["recurring_share", str(kept)].value == 1  # they have one decoder
        notes = one.files["latents.json"]["notes"]
        assert "no folder" in notes[str(tmp_path / "nowhere")]
        assert "16" in notes["slim"]
        assert (("max_cosine", "job 0") in scores) == (one.job_id != 0), "no SAE is held against itself"
        median = scores["latent_density", "median"]
        assert (median.low or 1) <= median.value <= (median.high or 0)
        assert len(one.files["latents.json"]["skew"]) == N_LATENTS
    again = {one.job_id: one for one in measure([*saes, narrow], context, options)}
    assert again[0] == found[0]


def test_a_distribution_has_densities_and_directions_alone(context: EvaluationContext) -> None:
    drawn = replace(context, subject=None, text=None, drawn=torch.randn(3000, 16, generator=rng()))
    (one,) = measure([SubjectSae(1, "job 1", made("relu"))], drawn, None)
    assert isinstance(one, Measured)
    metrics = {s.metric for s in one.scores}
    assert {"latent_density", "opposing_pairs", "cluster_latents"} <= metrics
    assert not {"first_position_latents", "position_latents", "effective_tokens"} & metrics


def test_intervals_of_density_cover_it() -> None:
    """Contexts in which a latent fires often or never: an interval over tokens would be far too narrow."""
    covered = 0
    for seed in range(60):
        often = (torch.rand(64, 1, 1, generator=rng(seed)) < 0.3).expand(64, 50, 4).flatten(0, 1)
        values = often * torch.ones(3200, 4)
        tokens = independent_vectors(3200)
        scores = {s.variant: s for s in density_scores(activity_of(values, tokens), tokens, rng(seed))}
        covered += (scores["max"].low or 1) <= 0.3 <= (scores["max"].high or 0)
    assert covered >= 0.8 * 60


def test_without_umap_a_note_says_so(context: EvaluationContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    (one,) = measure([SubjectSae(1, "job 1", made("topk"))], context, StructureOptions(umap=True))
    assert isinstance(one, Measured)
    assert "umap_agreement" not in {s.metric for s in one.scores}
    assert "pip install" in one.files["latents.json"]["notes"]["umap_agreement"]


def test_umap_parts_what_is_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # what it compiles as it is loaded takes a minute
    W_enc = torch.zeros(32, 60)
    W_enc[:16, :30] = torch.randn(16, 30, generator=rng())
    W_enc[16:, 30:] = torch.randn(16, 30, generator=rng())
    rows = clusters.squared_rows(W_enc)
    order = clusters.umap_order(rows, most=40, generator=rng())
    assert order is not None
    assert len(order.latents) == 40
    assert clusters.umap_score(order, clusters.two_clusters(rows)).value > 0.9
