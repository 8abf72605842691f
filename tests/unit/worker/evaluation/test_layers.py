"""Layers of latents: the sums are those of plain loops, what was planted is found, and what cannot be is said."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.config.evaluation.layers import LayersOptions
from orchestrator.errors import ConfigError, SubjectError
from tests.unit.worker.evaluation.layered import (
    ALONE,
    EVERYWHERE,
    IN_TURN,
    LAYERS,
    layered_contexts,
    planted_latents,
    tiny_layers,
)  # fmt: skip
from tests.unit.worker.evaluation.tiny_contexts import LENGTH, N_HELDOUT, entries, random_sae
from worker.evaluation.context import EvaluationContext
from worker.evaluation.layers import batches, decoder, measure
from worker.evaluation.layers.batches import active, layer_batches, text_of
from worker.evaluation.layers.latent_layers import LayerDistribution
from worker.evaluation.layers.maps import MAP_COLUMNS, heat_map
from worker.evaluation.layers.sums import LayerSums, SumsOfLayers
from worker.evaluation.metric import Measured, NotMeasured, Score
from worker.sae.inference import InferenceSae
from worker.subject.model import capture

OPTIONS = LayersOptions(prompt="tom and mary", example_latents=6, examples=3, example_tokens=2)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> list[EvaluationContext]:
    return tiny_layers(tmp_path_factory.mktemp("layers"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    return found(layered_contexts(tmp_path_factory.mktemp("planted")), planted_latents())[0]


def found(at: list[EvaluationContext], *saes: InferenceSae, options: LayersOptions = OPTIONS) -> list[Measured]:
    with torch.no_grad():
        results = [*measure(entries(*saes), at, options)]
    assert all(isinstance(one, Measured) for one in results), results
    return [one for one in results if isinstance(one, Measured)]


def value(of: Measured, metric: str, variant: str = "") -> float:
    return score(of, metric, variant).value


def score(of: Measured, metric: str, variant: str = "") -> Score:
    (one,) = [one for one in of.scores if (one.metric, one.variant) == (metric, variant)]
    return one


def relu(sae: InferenceSae) -> InferenceSae:
    return InferenceSae(replace(sae.facts, selection="relu", k=None), sae.tensors())


def activations(at: list[EvaluationContext], sae: InferenceSae) -> tuple[Tensor, Tensor]:
    """Return every latent at every layer, context and position, and which positions count; read layer by layer."""
    text = at[0].model()[1].heldout
    read = [capture(context.model()[0], text.ids) for context in at]
    return torch.stack([sae.encode(x) for x in read]).double(), text.is_measured


def sums_of(at: list[EvaluationContext], sae: InferenceSae) -> LayerSums:
    text = text_of(at[0].model()[1], None)
    layers = [context.model()[0].hook.layer or 0 for context in at]
    sums = SumsOfLayers(layers, sae.facts.n_latents, n_contexts=len(text), device=torch.device("cpu"))
    with torch.no_grad():
        for batch in layer_batches(at, text, ""):
            sums.add(batch, active(sae, batch.vectors))
    return sums.result()


def variance(weights: list[float], layers: list[int]) -> float:
    mean = sum(w * at for w, at in zip(weights, layers, strict=True))
    return sum(w * at**2 for w, at in zip(weights, layers, strict=True)) - mean**2


def by_loops(a: Tensor, is_measured: Tensor, layers: list[int]) -> dict[str, Any]:
    """Return what the sums come to, latent by latent and token by token."""
    n_layers, n_contexts, length, n = a.shape
    spread, released = 0.0, []
    for row in range(n_contexts):
        tokens = [at for at in range(length) if is_measured[row, at]]
        shares = torch.zeros(n_layers, n, dtype=torch.float64)
        within = 0.0
        for at in tokens:
            for latent in range(n):
                values = a[:, row, at, latent]
                mass = float(values.sum())
                if mass > 0:
                    share = (values / mass).tolist()
                    spread += mass * variance(share, layers)
                    within += variance(share, [*range(n_layers)])
                    shares[:, latent] += values / mass
        shares /= len(tokens)
        places = [*range(n_layers)]
        of_latent = sum(variance(shares[:, latent].tolist(), places) for latent in range(n)) / n
        total = variance(shares.mean(1).tolist(), places)
        released.append([1.0, within / (len(tokens) * n), of_latent, total])
    kept = a[:, is_measured]
    return {"acts": kept.sum(1), "counts": (kept > 0).sum(1), "spread": spread, "released": torch.tensor(released)}


@pytest.mark.parametrize("chosen", [(0, 1, 2), (0, 2), (2, 1)])
@pytest.mark.parametrize("selection", ["topk", "relu"])
def test_sums_are_those_of_plain_loops(
    contexts: list[EvaluationContext], selection: str, chosen: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    at, sae = [contexts[layer] for layer in chosen], random_sae(16)
    sae = sae if selection == "topk" else relu(sae)
    monkeypatch.setattr(batches, "tokens_per_pass", lambda *_: 3 * LENGTH)  # ten contexts: the last batch has one
    sums = sums_of(at, sae)
    wanted = by_loops(*activations(at, sae), [*chosen])
    torch.testing.assert_close(sums.acts.sum(0), wanted["acts"], rtol=1e-5, atol=1e-5)
    assert torch.equal(sums.counts.sum(0).long(), wanted["counts"])
    assert float(sums.spread.sum()) == pytest.approx(wanted["spread"], rel=1e-5)
    torch.testing.assert_close(sums.released, wanted["released"].double(), rtol=1e-5, atol=1e-7)
    assert int(sums.n_tokens.sum()) == int(at[0].model()[1].heldout.is_measured.sum())


def test_scores_follow_from_the_loops(contexts: list[EvaluationContext]) -> None:
    sae = random_sae(16)
    (one,) = found(contexts, sae)
    wanted = by_loops(*activations(contexts, sae), [0, 1, 2])
    layers, of_latents = [0, 1, 2], []
    for totals in wanted["acts"].T:
        if totals.sum() > 0:
            share = (totals / totals.sum()).tolist()
            mean = sum(p * at for p, at in zip(share, layers, strict=True))
            entropy = -sum(p * math.log(p) for p in share if p)
            of_latents.append((mean, variance(share, layers), entropy, float(totals.sum()), abs(mean - round(mean))))
    n = len(of_latents)
    means, variances, entropies, masses, fractions = ([*column] for column in zip(*of_latents, strict=True))
    mass = sum(masses)
    total = variance((wanted["acts"].sum(1) / mass).tolist(), layers)
    of_latent = sum(w * v for w, v in zip(masses, variances, strict=True)) / mass
    expected = {
        ("layer_mean", ""): sum(means) / n,
        ("layer_var", ""): sum(variances) / n,
        ("layer_std", ""): sum(math.sqrt(max(0.0, v)) for v in variances) / n,
        ("layer_entropy", ""): sum(entropies) / n,
        ("layer_distance", ""): sum(fractions) / n,
        ("var_layer", ""): total,
        ("var_layer_latent", ""): of_latent,
        ("var_layer_token", ""): wanted["spread"] / mass,
        ("var_ratio_latent", ""): of_latent / total,
        ("var_ratio_token", ""): wanted["spread"] / mass / of_latent,
        ("var_layer_token", "as released"): float(wanted["released"][:, 1].mean()),
        ("var_layer_latent", "as released"): float(wanted["released"][:, 2].mean()),
        ("var_layer", "as released"): float(wanted["released"][:, 3].mean()),
        ("var_ratio_latent", "as released"): float((wanted["released"][:, 2] / wanted["released"][:, 3]).mean()),
        ("var_ratio_token", "as released"): float((wanted["released"][:, 1] / wanted["released"][:, 2]).mean()),
        ("dead_share", ""): 1 - n / sae.facts.n_latents,
        ("layers_active", ""): float((wanted["counts"] > 0).sum()) / n,
    }
    assert {key: value(one, *key) for key in expected} == pytest.approx(expected, rel=1e-4)
    (within,) = [one for one in one.scores if (one.metric, one.variant) == ("var_layer_token", "")]
    for each in one.scores:
        if each.low is not None and each.high is not None:
            assert each.low <= each.value <= each.high, f"{each.metric} {each.variant}"
    assert value(one, "var_layer_token") <= value(one, "var_layer_latent") <= value(one, "var_layer")
    assert within.low is not None
    assert within.low < within.value < (within.high or 0)


def test_entropy_tells_latents_of_one_layer_from_those_of_all(planted: Measured) -> None:
    table = planted.files["latents.json"]
    entropy = dict(zip(table["latents"], table["entropy"], strict=True))
    of_one, of_all = ([entropy[latent] for latent in part] for part in (range(ALONE), range(ALONE, len(entropy))))
    auc = sum(one < other for one in of_one for other in of_all) / (len(of_one) * len(of_all))
    assert auc > 0.99
    assert value(planted, "single_layer_share") == pytest.approx(ALONE / (ALONE + EVERYWHERE + IN_TURN))
    assert score(planted, "layers_active").details["counts"] == [ALONE, 0, 0, EVERYWHERE + IN_TURN]


def test_the_dip_is_that_of_as_many_layers_or_of_one(planted: Measured) -> None:
    """Of four layers alike it is half of one's mass; of one alone there is none."""
    several = EVERYWHERE + IN_TURN
    assert value(planted, "layer_dip") == pytest.approx(several / (ALONE + several) / (2 * LAYERS), rel=0.1)
    assert value(planted, "layer_dip", "as released") > 0
    assert score(planted, "layer_dip").n == ALONE + several


def test_variance_ratios_are_the_planted_ones(planted: Measured) -> None:
    """Tokens are uniform: a latent of one token has mass 1 at one layer, L at all; one of L tokens in turn has L."""
    alone, everywhere, in_turn = ALONE, EVERYWHERE * LAYERS, IN_TURN * LAYERS
    of_all = (LAYERS**2 - 1) / 12
    assert value(planted, "var_layer") == pytest.approx(of_all, rel=0.05)
    several = everywhere + in_turn
    assert value(planted, "var_ratio_latent") == pytest.approx(several / (alone + several), rel=0.05)
    assert value(planted, "var_ratio_token") == pytest.approx(everywhere / several, rel=0.05)


def test_the_released_means_are_diluted_by_latents_that_are_not_active(planted: Measured) -> None:
    """Per token and latent P is 0 where there is no activation: at one token of 62 values most latents have none."""
    n, values = ALONE + EVERYWHERE + IN_TURN, 62
    diluted = EVERYWHERE / values * (LAYERS**2 - 1) / 12 / n
    assert value(planted, "var_layer_token", "as released") == pytest.approx(diluted, rel=0.05)
    assert value(planted, "var_layer_token") > 20 * diluted


def test_bits_do_not_depend_on_the_company_or_the_attempt(tmp_path: Path) -> None:
    saes = [random_sae(16, seed=1), relu(random_sae(16, seed=2, n_latents=40)), random_sae(16, normalize="layer_norm")]
    together = [repr(one.scores) for one in found(tiny_layers(tmp_path), *saes)]
    assert [repr(one.scores) for one in found(tiny_layers(tmp_path), *saes)] == together, "from what the first one kept"
    alone = [repr(found(tiny_layers(tmp_path), one)[0].scores) for one in saes]
    assert alone == together


def test_the_text_is_the_heldout_one_or_more_or_less(contexts: list[EvaluationContext]) -> None:
    _, text = contexts[0].model()
    assert torch.equal(text_of(text, None).numbers, text.heldout.numbers)
    assert torch.equal(text_of(text, 2 * LENGTH).numbers, text.heldout.numbers[-2:])
    more = text_of(text, (N_HELDOUT + 5) * LENGTH)
    assert len(more) == N_HELDOUT + 5
    assert torch.equal(more.numbers[-N_HELDOUT:], text.heldout.numbers)
    assert len(text_of(text, 10**9)) == text.tokens.n_contexts


def test_cosines_of_neighbours_are_of_centred_vectors(contexts: list[EvaluationContext]) -> None:
    (one,) = found(contexts, random_sae(16))
    text = contexts[0].model()[1].heldout
    x = [capture(context.model()[0], text.ids)[text.is_measured] for context in contexts]
    centred = [part - part.mean(0) for part in x]
    for layer in range(2):
        wanted = float(functional.cosine_similarity(centred[layer], centred[layer + 1]).mean())
        assert value(one, "adjacent_cosine", f"layers={layer}-{layer + 1}") == pytest.approx(wanted, abs=1e-5)
        raw = float(functional.cosine_similarity(x[layer], x[layer + 1]).mean())
        assert value(one, "adjacent_cosine", f"raw, layers={layer}-{layer + 1}") == pytest.approx(raw, abs=1e-5)
    for layer, part in enumerate(x):
        assert value(one, "activation_norm", f"layer={layer}") == pytest.approx(
            float(part.norm(dim=1).mean()), rel=1e-5
        )


@pytest.mark.parametrize("chunk", [1 << 24, 50])
def test_highest_cosines(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(decoder, "CHUNK_VALUES", chunk)
    rows = functional.normalize(torch.randn(24, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    best, before = decoder.highest_cosines(rows)
    cosines = rows @ rows.T
    for j in range(24):
        assert float(best[j]) == pytest.approx(max(float(cosines[i, j]) for i in range(24) if i != j), abs=1e-6)
        assert float(before[j]) == pytest.approx(max([0.0, *(float(cosines[i, j]) for i in range(j))]), abs=1e-6)
    assert float(before.mean()) < float(best.mean()), "the first latents have none before them: biased low"


def test_the_nearest_token_of_a_latent_that_is_one(contexts: list[EvaluationContext]) -> None:
    embeddings = contexts[0].model()[0].model.get_input_embeddings().weight
    rows = functional.normalize(embeddings[[7, 3, 11]].detach().clone(), dim=1)
    cosines, tokens = decoder.nearest_tokens(rows, embeddings)
    assert tokens.tolist() == [7, 3, 11]
    assert cosines.tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_examples_are_the_largest_activations_with_their_text(contexts: list[EvaluationContext]) -> None:
    sae = random_sae(16)
    (one,) = found(contexts, sae)
    a, is_measured = activations(contexts, sae)
    text, tokenizer = contexts[0].model()[1].heldout, contexts[0].model()[0].tokenizer
    table: Mapping[str, Any] = one.files["examples.json"]
    assert len(table) == OPTIONS.example_latents
    for latent, by_layer in table.items():
        for layer, examples in by_layer.items():
            values = (a[int(layer), :, :, int(latent)] * is_measured).flatten()
            wanted = [v for v in values.sort(descending=True).values[: OPTIONS.examples].tolist() if v > 0]
            assert [example["value"] for example in examples] == pytest.approx(wanted, abs=1e-3)
            for example in examples:
                (row,) = (text.numbers == example["context"]).nonzero()[0].tolist()
                places = (a[int(layer), row, :, int(latent)] - example["value"]).abs() < 1e-3
                own = [tokenizer.decode([int(text.ids[row, at])]) for at in places.nonzero()[:, 0]]
                assert example["tokens"][example["at"]] in own
                assert len(example["tokens"]) <= 2 * OPTIONS.example_tokens + 1


def test_a_prompt_has_the_sums_of_its_tokens(contexts: list[EvaluationContext]) -> None:
    sae = random_sae(16)
    (one,) = found(contexts, sae)
    subject = contexts[0].model()[0]
    ids = torch.tensor([subject.tokenizer(OPTIONS.prompt, add_special_tokens=False)["input_ids"]])
    sums = torch.stack([sae.encode(capture(context.model()[0], ids))[0].sum(0) for context in contexts])
    table = one.files["prompt.json"]
    assert sorted(table["latents"]) == (sums.amax(0) > 1e-3).nonzero()[:, 0].tolist()
    torch.testing.assert_close(torch.tensor(table["sums"]), sums[:, table["latents"]], rtol=1e-4, atol=1e-4)
    assert "".join(table["tokens"]) == OPTIONS.prompt
    assert value(one, "prompt_latents") == len(table["latents"])


def test_a_heat_map_of_many_latents_has_means_of_neighbours() -> None:
    probabilities = torch.rand(3, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = heat_map(probabilities, torch.arange(3))
    assert found["latents"] == 1000
    assert [len(row) for row in found["values"]] == [MAP_COLUMNS] * 3
    assert found["values"][1][0] == pytest.approx(float(probabilities[1, :8].mean()), abs=1e-4)
    few = heat_map(probabilities[:, :5], torch.arange(3))
    torch.testing.assert_close(torch.tensor(few["values"]).double(), probabilities[:, :5], atol=1e-4, rtol=0)


def test_a_mean_between_layers_that_are_measured_is_as_far_as_the_nearest() -> None:
    found = LayerDistribution.of(torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).double(), torch.tensor([0, 4]))
    assert found.mean[:2].tolist() == [2.0, 0.0]
    assert found.distance[:2].tolist() == [2.0, 0.0]
    assert found.distance[2].isnan()
    assert found.bimodality[0] == pytest.approx(1.0), "two points, half and half"
    assert found.order.tolist() == [0, 1], "what is never active is left out"


def test_one_sae_that_cannot_be_measured_leaves_the_others(contexts: list[EvaluationContext]) -> None:
    good, silent = random_sae(16), relu(random_sae(16))
    silent = silent.changed({"b_enc": torch.full((24,), -1e6)})
    with torch.no_grad():
        results = {one.job_id: one for one in measure(entries(silent, random_sae(8), good), contexts, OPTIONS)}
    assert [type(results[number]) for number in (1, 2, 3)] == [NotMeasured, NotMeasured, Measured]
    assert "no latent of the SAE sae 1 is active on the text" in str(results[1].error)  # type: ignore[union-attr]
    assert "8 dimensions" in str(results[2].error)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("prompt", "said"), [("a" * 40, "the model reads 32 at once"), ("{special}", "has special tokens alone")]
)
def test_a_prompt_that_cannot_be_read(contexts: list[EvaluationContext], prompt: str, said: str) -> None:
    prompt = prompt.format(special=contexts[0].model()[0].tokenizer.decode([0]))
    with pytest.raises(ConfigError, match=said):
        [*measure(entries(random_sae(16)), contexts, LayersOptions(prompt=prompt))]
    with pytest.raises(ValueError, match="at least 1 character"):
        LayersOptions(prompt="")


def test_activations_that_are_not_finite_name_their_place(contexts: list[EvaluationContext]) -> None:
    subject = contexts[1].model()[0]
    bad = subject.model.get_submodule(subject.hook.name).register_forward_hook(lambda _m, _a, out: _spoiled(out))
    try:
        with pytest.raises(SubjectError, match="not finite"):
            [*measure(entries(random_sae(16)), contexts, OPTIONS)]
    finally:
        bad.remove()


def _spoiled(out: Any) -> Any:
    return (out[0] * math.nan, *out[1:]) if isinstance(out, tuple) else out * math.nan
