"""SAEs in the space of a tuned lens: errors before the way back, the model's loss after it, held against itself."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.config.evaluation.ablation import AblationOptions
from orchestrator.config.evaluation.downstream import DownstreamOptions
from orchestrator.config.evaluation.evaluation import EvaluatedSaeRef, EvaluationConfig, EvaluationPlan
from orchestrator.config.job import DataConfig, SubjectConfig
from orchestrator.config.lens.facts import LensFacts
from orchestrator.estimates.subject_files import SHIPPED_FOLDER
from tests.unit.worker.evaluation.tiny_contexts import entries, identity_sae, random_sae, tiny_context
from worker.evaluation import downstream, reconstruction
from worker.evaluation.ablation.family import AblationRun, choose_latents
from worker.evaluation.context import EvaluationContext
from worker.evaluation.layers.batches import layer_batches, text_of
from worker.evaluation.metric import Measured, Score
from worker.evaluation.places import Places
from worker.evaluation.probes.features import _activations, _Wanted
from worker.lens.tuned_lens import TunedLens
from worker.subject.model import load, run_patched

Found = dict[tuple[str, str], Score]


def a_lens(context: EvaluationContext, *, scale: float = 0.15) -> TunedLens:
    subject, _ = context.model()
    n, d = subject.n_layers, subject.d_model
    draw = torch.Generator().manual_seed(7)
    weights, biases = scale * torch.randn(n, d, d, generator=draw), torch.randn(n, d, generator=draw)
    weights[-1], biases[-1] = 0, 0
    facts = LensFacts(model=subject.config.model, fingerprint=subject.fingerprint, n_layers=n, d_model=d)
    return TunedLens(weights=weights, biases=biases, facts=facts)


def mapped(context: EvaluationContext, *, scale: float = 0.15) -> EvaluationContext:
    return replace(context, lens=a_lens(context, scale=scale), lens_sha256="a" * 64)


def scores(found: Any) -> Found:
    (one,) = found
    assert isinstance(one, Measured), one
    assert len({(s.metric, s.variant) for s in one.scores}) == len(one.scores)
    return {(s.metric, s.variant): s for s in one.scores}


def losses(context: EvaluationContext, put: Any, baseline: Any = None) -> Mapping[str, float]:
    """Return mean ΔCE and KL of whole forward passes with something put at the place, against others."""
    subject, text = context.model()
    changes: list[Tensor] = []
    divergences: list[Tensor] = []
    for ids, mask in zip(text.heldout.ids, text.heldout.is_measured, strict=True):

        def logs(replacement: Any, ids: Tensor = ids, kept: Tensor = ~mask[None, :, None]) -> Tensor:
            patch = partial(_replaced, kept, replacement)
            return run_patched([subject], ids[None], [patch])[0].double().log_softmax(-1)

        clean, patched = logs(baseline or (lambda x: x)), logs(put)
        counted = mask[:-1].nonzero()[:, 0]
        changes.append(clean[counted, ids[counted + 1]] - patched[counted, ids[counted + 1]])
        divergences.append((clean.exp() * (clean - patched)).sum(-1)[counted])
    return {"delta_ce": float(torch.cat(changes).mean()), "kl": float(torch.cat(divergences).mean())}


def _replaced(kept: Tensor, replacement: Any, x: Tensor) -> Tensor:
    return torch.where(kept, x, replacement(x))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_there_and_back_costs_nothing(tmp_path: Path, family: str, layer: int) -> None:
    """x̂ = x through the lens and the way back, in the midst of a text as well as at its first token."""
    context = mapped(tiny_context(tmp_path, family=family, layer=layer))
    found = scores(downstream.measure(entries(identity_sae(16)), context, DownstreamOptions()))
    for metric in ("delta_ce", "kl"):
        for variant in ("", "first", "rest"):
            assert abs(found[metric, variant].value) < 1e-4
    condition = found["lens_condition", ""].value
    assert condition == (1.0 if layer == 2 else pytest.approx(context.lens.condition(layer)))  # type: ignore[union-attr]


def test_there_and_back_costs_nothing_of_the_shipped_subject(tmp_path: Path) -> None:
    """In float32, with a lens as ill-conditioned as trained ones are, at every layer."""
    subject = load(SubjectConfig(model=str(SHIPPED_FOLDER), layer=0))
    for layer in range(subject.n_layers):
        at = subject.at(subject.config.model_copy(update={"layer": layer}))
        base = tiny_context(tmp_path)
        config = base.config.model_copy(update={"subject": at.config})
        context = mapped(replace(base, subject=at, config=config), scale=0.05)
        found = scores(downstream.measure(entries(identity_sae(at.d_model)), context, DownstreamOptions()))
        assert abs(found["delta_ce", ""].value) < 1e-4
        assert abs(found["kl", ""].value) < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_model_is_patched_after_the_way_back_and_held_against_itself(tmp_path: Path, family: str) -> None:
    plain = tiny_context(tmp_path, family=family)
    context, sae = mapped(plain), random_sae(16)
    lens = a_lens(plain)
    found = scores(downstream.measure(entries(sae), context, DownstreamOptions()))
    wanted = losses(plain, lambda x: lens.back(1, sae(lens.into(1, x))))
    for metric, value in wanted.items():
        assert found[metric, ""].value == pytest.approx(value, rel=2e-4, abs=2e-5)
    raw = scores(downstream.measure(entries(sae), plain, DownstreamOptions()))
    assert found["ce_clean", ""].value == raw["ce_clean", ""].value, "the baseline is the model as it is"
    assert found["residual_norm", ""].value == raw["residual_norm", ""].value
    assert ("lens_condition", "") not in raw


def test_errors_are_those_before_the_way_back(tmp_path: Path) -> None:
    plain = tiny_context(tmp_path)
    context, sae = mapped(plain), random_sae(16, normalize="unit")
    x = a_lens(plain).into(1, plain.vectors)
    error = (x - sae(x)).square().sum() / (x - x.mean(0)).square().sum()
    found = scores(reconstruction.measure(entries(sae), context, None))
    assert found["fvu", "raw"].value == pytest.approx(float(error), rel=1e-5)
    at_rest = scores(downstream.measure(entries(sae), context, DownstreamOptions()))["fvu", "raw, rest"].value
    y = a_lens(plain).into(1, plain.heldout_activations)
    rest = plain.model()[1].heldout.is_measured.clone()
    rest[:, 0] = False
    squares, spread = (y - sae(y)).square().sum(-1)[rest], (y - x.mean(0)).square().sum(-1)[rest]
    assert at_rest == pytest.approx(float(squares.sum() / spread.sum()), rel=1e-4)


def test_what_is_put_back_in_parts_is_put_back_raw(tmp_path: Path) -> None:
    plain = tiny_context(tmp_path)
    context, sae, lens = mapped(plain), random_sae(16), a_lens(plain)
    options = DownstreamOptions(replaced_apart=True, test_k=(2,), refined=True)
    found = scores(downstream.measure(entries(sae), context, options))

    def first(x: Tensor) -> Tensor:
        return torch.cat([lens.back(1, sae(lens.into(1, x)))[:, :1], x[:, 1:]], dim=1)

    wanted = losses(plain, first)
    assert found["kl", "first replaced"].value == pytest.approx(wanted["kl"], rel=2e-4, abs=2e-5)
    shorter = downstream.family.with_k(sae, 2)
    wanted = losses(plain, lambda x: lens.back(1, shorter(lens.into(1, x))))
    assert found["kl", "k=2"].value == pytest.approx(wanted["kl"], rel=2e-4, abs=2e-5)
    assert found["fvu", "refined"].value < found["fvu", "raw, rest"].value


def test_the_released_code_is_reproduced_by_its_switch(tmp_path: Path) -> None:
    """Its baseline is the model with vectors of lens space in its stream; its inverse the diagonal of the inverse."""
    plain = tiny_context(tmp_path)
    context, sae, lens = mapped(plain), random_sae(16), a_lens(plain)
    found = scores(downstream.measure(entries(sae), context, DownstreamOptions(released_lens=True)))
    ours = losses(plain, lambda x: lens.back(1, sae(lens.into(1, x))))
    baseline = losses(plain, lambda x: lens.back(1, sae(lens.into(1, x))), partial(lens.into, 1))
    inverse = torch.linalg.inv(torch.eye(16) + lens.weights[0])
    theirs = losses(
        plain, lambda x: (sae(lens.into(0, x)) - lens.biases[0]) * inverse.diagonal(), partial(lens.into, 0)
    )
    for metric in ("delta_ce", "kl"):
        for variant, wanted in (("", ours), ("released baseline", baseline), ("released lens", theirs)):
            assert found[metric, variant].value == pytest.approx(wanted[metric], rel=1e-3, abs=1e-4), variant
    assert abs(baseline["delta_ce"] - ours["delta_ce"]) > 1e-2
    without = scores(downstream.measure(entries(sae), context, DownstreamOptions()))
    assert {key for key in found if "released" in key[1]} == found.keys() - without.keys()
    on_raw = scores(downstream.measure(entries(sae), plain, DownstreamOptions(released_lens=True)))
    assert not any("released" in variant for _, variant in on_raw), "without a lens there is nothing to reproduce"


def test_the_switch_changes_no_id_where_it_is_off() -> None:
    def config(**options: Any) -> EvaluationConfig:
        plan = EvaluationPlan.model_validate({"downstream": options})
        return EvaluationConfig(
            plan=plan, sae=EvaluatedSaeRef(id=1), subject=SubjectConfig(), data=DataConfig(), heldout_tokens=8
        )

    assert "released_lens" not in config().canonical_json()
    assert config(released_lens=False).config_id == config().config_id
    assert config(released_lens=True).config_id != config().config_id


@pytest.mark.parametrize("variant", ["one position", "from start", "no error"])
def test_a_latent_is_taken_out_in_lens_space(tmp_path: Path, variant: Any) -> None:
    """What an ablation changes raw is what decoding without the latent changes after the way back."""
    plain = tiny_context(tmp_path)
    context, sae, lens = mapped(plain), random_sae(16, normalize="unit"), a_lens(plain)
    run = AblationRun(context, AblationOptions(pairs=64, affected_tokens=2))
    window = run.windows[0]
    x = run._effects.activations(window)
    assert torch.equal(x, plain.heldout_activations[window.context, : window.length])
    chosen = choose_latents(sae, variant, window, x, torch.Generator().manual_seed(0), context=context)
    ablations, y = chosen.ablations, lens.into(1, x)
    for row in range(0, len(chosen.numbers), 7):
        at, latent = int(ablations.at[row]), int(chosen.numbers[row])
        full = sae.decode(acts := sae.encode(y))
        sae.encode(y)
        acts[:, latent] = 0
        change = full - sae.decode(acts)
        is_there = (torch.arange(len(x)) == at)[:, None]
        base = torch.where(is_there, full, y) if variant == "no error" else y
        wanted = lens.back(1, base - (change if variant == "from start" else torch.where(is_there, change, 0.0)))
        torch.testing.assert_close(ablations.ablated[row], wanted, rtol=1e-4, atol=1e-5)


def test_everything_else_reads_lens_space(tmp_path: Path) -> None:
    plain = tiny_context(tmp_path)
    context, lens = mapped(plain), a_lens(plain)
    torch.testing.assert_close(context.vectors, lens.into(1, plain.vectors))
    heldout = plain.model()[1].heldout
    torch.testing.assert_close(context.activations(heldout), lens.into(1, plain.heldout_activations))
    torch.testing.assert_close(context.heldout_activations, context.activations(heldout))
    assert context.of("activations") != plain.of("activations")
    assert context.raw.of("activations") == plain.of("activations"), "raw activations are captured once for both"


def test_probes_are_trained_on_lens_space(tmp_path: Path) -> None:
    plain = tiny_context(tmp_path)
    wanted = _Wanted(np.array([0, 1]), np.array([[0, 3], [1, 2]]), None)
    raw, found = (_activations(one, [[3, 4, 5], [6, 7]], wanted, lambda: None) for one in (plain, mapped(plain)))
    torch.testing.assert_close(found, a_lens(plain).into(1, raw))


def test_at_several_layers_each_has_its_own_translator(tmp_path: Path) -> None:
    plain = tiny_context(tmp_path)
    several = plain.config.subject.model_copy(update={"layer": None, "layers": "all"})
    context = mapped(replace(plain, config=plain.config.model_copy(update={"subject": several})))
    lens = a_lens(plain)
    places = Places.of(context)
    contexts = [*places.contexts()]
    raw = [*Places.of(context.raw).contexts()]
    for layer, (one, other) in enumerate(zip(contexts, raw, strict=True)):
        torch.testing.assert_close(one.vectors, lens.into(layer, other.vectors))
    text = text_of(plain.model()[1], None)
    batches = zip(layer_batches(contexts, text, ""), layer_batches(raw, text, ""), strict=True)
    for mine, theirs in batches:
        for layer, (x, y) in enumerate(zip(theirs.vectors, mine.vectors, strict=True)):
            torch.testing.assert_close(y, lens.into(layer, x))
    (found,) = places.measure("downstream", entries(identity_sae(16)), DownstreamOptions())
    by_name = scores([found])
    assert abs(by_name["kl", "layer=0"].value) < 1e-4
    assert by_name["lens_condition", "layer=2"].value == 1.0
