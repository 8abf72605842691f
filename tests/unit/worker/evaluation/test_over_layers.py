"""SAEs at several layers: what is said of each, of all, and of those they were trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.config.job import SubjectConfig
from orchestrator.errors import ConfigError
from tests.unit.worker.evaluation.tiny_contexts import entries, identity_sae, random_sae, tiny_context
from worker.evaluation import downstream, registry
from worker.evaluation.bootstrap import ContextBootstrap, ratio
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae
from worker.evaluation.over_layers import over_layers
from worker.evaluation.places import Places

SUMS = torch.rand(3, 12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
"""Of three layers, by context."""


def at_layer(layer: int, *, seed: int = 0) -> Measured:
    bootstrap = ContextBootstrap(12, torch.Generator().manual_seed(seed))
    plain = bootstrap(SUMS[layer]).estimate(ratio).score("fvu", n=7, unit="tokens")
    return Measured(4, [plain, Score("density", float(layer), "max", n=layer)], {"latents.json": layer})


def by_name(found: Measured) -> dict[tuple[str, str], Score]:
    named = {(score.metric, score.variant): score for score in found.scores}
    assert len(named) == len(found.scores), "each is stored under its metric and variant"
    return named


def test_of_layers_that_share_their_draws_the_mean_is_taken_draw_by_draw() -> None:
    found = over_layers({layer: at_layer(layer) for layer in range(3)}, own=(0, 1, 2))
    scores = by_name(found)
    bootstrap = ContextBootstrap(12, torch.Generator().manual_seed(0))
    resampled = [bootstrap(sums) for sums in SUMS]
    ratios = torch.stack([one.drawn[:, 0] / one.drawn[:, 1] for one in resampled])
    mean = scores["fvu", ""]
    assert mean == scores["fvu", "mean over layers"]._replace(variant="")
    assert mean.value == pytest.approx(float((SUMS[:, :, 0].sum(1) / SUMS[:, :, 1].sum(1)).mean()))
    assert mean.low == pytest.approx(float(ratios.mean(0).quantile(0.05)))
    assert (mean.n, mean.details) == (7, {"layers": [0, 1, 2], "unit": "tokens"})
    variation = scores["fvu", "cv over layers"]
    values = torch.tensor([scores["fvu", f"layer={layer}"].value for layer in range(3)])
    assert variation.value == pytest.approx(float(values.std(correction=0) / values.mean()))
    assert variation.std_error == pytest.approx(float((ratios.std(0, correction=0) / ratios.mean(0)).std()))
    assert scores["density", "layer=2, max"].value == 2.0
    assert (scores["density", "max"].value, scores["density", "max"].n) == (1.0, 3)
    assert ("density", "max, cv over layers") not in scores
    assert found.files == {f"layer_{layer}_latents.json": layer for layer in range(3)}
    assert found.job_id == 4


def test_of_layers_of_other_draws_the_interval_is_never_too_narrow() -> None:
    apart = [at_layer(layer, seed=layer) for layer in range(3)]
    mean = by_name(over_layers(dict(enumerate(apart)), own=()))["fvu", ""]
    lows = [one.scores[0].low or 0.0 for one in apart]
    assert mean.low == pytest.approx(sum(lows) / 3)
    together = by_name(over_layers({layer: at_layer(layer) for layer in range(3)}, own=()))["fvu", ""]
    assert mean.std_error is not None
    assert together.std_error is not None
    assert mean.std_error > together.std_error


def test_the_plain_score_is_that_of_the_layers_it_was_trained_on() -> None:
    found = {layer: at_layer(layer) for layer in range(3)}
    scores = by_name(over_layers(found, own=(1,)))
    assert scores["fvu", ""] == at_layer(1).scores[0]._replace(draws=scores["fvu", ""].draws)
    assert scores["fvu", ""].value == scores["fvu", "layer=1"].value
    elsewhere = by_name(over_layers(found, own=(5,)))
    assert ("fvu", "") not in elsewhere, "where it was trained nothing was measured"
    assert ("fvu", "mean over layers") in elsewhere


def several(tmp_path: Path, layers: Any = "all") -> Places:
    context = tiny_context(tmp_path)
    subject = SubjectConfig(model=context.config.subject.model, layers=layers)
    return Places.of(replace(context, config=context.config.model_copy(update={"subject": subject})))


def test_each_layer_is_measured_as_if_it_were_alone(tmp_path: Path) -> None:
    saes = entries(random_sae(16), identity_sae(16))
    found = {one.job_id: one for one in several(tmp_path).measure("downstream", saes, None)}
    for layer in range(3):
        alone = {one.job_id: one for one in downstream.measure(saes, tiny_context(tmp_path, layer=layer), None)}
        for job_id, both in found.items():
            one, expected = both, alone[job_id]
            assert isinstance(one, Measured)
            assert isinstance(expected, Measured)
            scores = by_name(one)
            for score in expected.scores:
                told = scores[score.metric, ", ".join(filter(None, (f"layer={layer}", score.variant)))]
                assert told.told() == score.told() | {"variant": told.variant}


def trained_on(number: int, *layers: int) -> SubjectSae:
    sae = random_sae(16)
    return SubjectSae(number, f"sae {number}", sae.changed({}, facts=replace(sae.facts, layers=layers)))


def test_at_one_layer_only_what_was_trained_there_has_plain_scores(tmp_path: Path) -> None:
    saes = [trained_on(1, 0), trained_on(2, 1), trained_on(3, 0, 1), trained_on(4)]
    found = {one.job_id: one for one in several(tmp_path, layers=(1,)).measure("reconstruction", saes, None)}
    (plain,) = fvu_at_layer_1(tmp_path, saes[1])
    for job_id, one in found.items():
        assert isinstance(one, Measured)
        scores = by_name(one)
        is_home = job_id in (2, 4)
        assert (("fvu", "") in scores, ("fvu", "layer=1") in scores) == (is_home, not is_home)
        assert not [variant for _, variant in scores if "over layers" in variant], "of one layer there is none"
        assert scores["fvu", "" if is_home else "layer=1"].value == plain.value


def fvu_at_layer_1(tmp_path: Path, one: SubjectSae) -> list[Score]:
    """Return fvu of an SAE at layer 1, measured there alone."""
    (found,) = registry.family("reconstruction")([one], tiny_context(tmp_path, layer=1), None)
    assert isinstance(found, Measured)
    return [score for score in found.scores if (score.metric, score.variant) == ("fvu", "")]


def test_what_goes_wrong_at_one_layer_is_told_of_that_sae_and_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(saes: Sequence[SubjectSae], context: EvaluationContext, _: Any) -> Iterator[Measured | NotMeasured]:
        for one in saes:
            if (one.job_id, context.config.subject.layer) == (1, 0):
                yield NotMeasured(1, ConfigError("no"))
            else:
                yield Measured(one.job_id, [Score("here", float(context.config.subject.layer or 0))])

    monkeypatch.setattr(registry, "family", {"probes": odd}.__getitem__)
    refused, measured = several(tmp_path).measure("probes", entries(random_sae(16), random_sae(16, seed=1)), None)
    assert isinstance(refused, NotMeasured)
    assert str(refused.error) == "at layer 0: no"
    assert isinstance(measured, Measured)
    assert by_name(measured)["here", ""].value == 1.0


def test_layers_that_are_not_an_saes_own_are_named_where_they_are_taken_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def together(saes: Sequence[SubjectSae], contexts: Sequence[EvaluationContext], _: Any) -> Iterator[Measured]:
        yield from (Measured(one.job_id, [Score("n", float(len(contexts))), Score("n", 1.0, "counts")]) for one in saes)

    monkeypatch.setattr(registry, "layers_family", lambda _: together)
    own, other = entries(random_sae(16), random_sae(16))
    for one, layers in ((own, (0, 2)), (other, (0, 1, 2))):
        one.sae.facts = replace(one.sae.facts, layers=layers)
    found = several(tmp_path, layers=(0, 2)).measure("layers", [own, other], None)
    variants = [[score.variant for score in one.scores] for one in found if isinstance(one, Measured)]
    assert variants == [["", "counts"], ["layers=0,2", "layers=0,2, counts"]]


def test_a_layer_that_the_model_has_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layer"):
        several(tmp_path, layers=(0, 7))


def test_progress_goes_through_all_layers(tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    places = several(tmp_path)
    places = replace(places, whole=replace(places.whole, progress=lambda *told: said.append(told)))
    assert len([*places.measure("reconstruction", entries(random_sae(16)), None)]) == 1
    assert {phase.rpartition(", ")[2] for phase, _ in said} == {"layer 0", "layer 1", "layer 2"}
    shares = [share for _, share in said]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
