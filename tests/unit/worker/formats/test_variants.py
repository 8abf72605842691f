"""What files leave open: the readings there are, and that activations tell the right one."""

from dataclasses import replace
from pathlib import Path

import torch

from tests.made_saes import D_MODEL, apart, facts, inputs, made
from tests.unit.worker.formats.test_foreign_files import llama_scope, not_subtracting
from worker.formats import registry
from worker.formats.variants import chosen, variants
from worker.sae.inference import InferenceSae, Scales


def l0(sae: InferenceSae) -> float:
    return float((sae.encode(inputs()) > 0).sum(1).float().mean())


def test_the_units_of_llama_scopes_threshold_are_told_by_l0(tmp_path: Path) -> None:
    """Of a transcoder, whose input and output differ in scale 20-fold, each reading has another L0."""
    theta = 0.05
    wanted = llama_scope(tmp_path, theta, (20.0, 1.0), hook_out="blocks.8.hook_mlp_out")
    sae = registry.read(tmp_path).sae
    found = {variant.flag: variant.sae for variant in variants(sae) if variant.flag.startswith("threshold")}
    assert set(found) == {"threshold=encoder", "threshold=input"}
    assert found["threshold=encoder"].threshold is not None
    assert abs(float(found["threshold=encoder"].threshold) - theta) < 1e-7
    by_reading = [l0(sae), *(l0(other) for other in found.values())]
    assert l0(wanted) == by_reading[0]
    assert len(set(by_reading)) == 3, f"L0 does not tell them apart: {by_reading}"


def test_whether_the_bias_is_subtracted_is_told_by_the_reconstruction() -> None:
    right = not_subtracting("relu")
    wrong = right.changed({}, facts=replace(right.facts, subtracts_bias=True))
    other = chosen(wrong, "bias=not-subtracted")
    assert other is not None
    assert apart(other(inputs()), right(inputs())) == 0.0
    assert apart(wrong(inputs()), right(inputs())) > 1e-2


def test_whether_the_scale_is_in_the_weights_already() -> None:
    base = made("relu")
    fixed = base.changed({}, facts=replace(base.facts, normalize="fixed"), scales=Scales(input=0.1, output=10.0))
    folded = chosen(fixed, "norm=folded")
    assert folded is not None
    assert apart(folded(inputs()), base(inputs())) == 0.0
    assert apart(fixed(inputs()), base(inputs())) > 1e-2


def test_openais_normalisation_is_a_variant_both_ways() -> None:
    assert "norm=layer_norm" in {variant.flag for variant in variants(made("topk", "none"))}
    plain = chosen(made("topk", "layer_norm"), "norm=none")
    assert plain is not None
    assert apart(plain(inputs()), made("topk", "none")(inputs())) == 0.0


def test_a_threshold_may_be_relative_to_the_norms_of_rows() -> None:
    base = made("jumprelu")
    norms = torch.linspace(0.5, 2, base.facts.n_latents)
    longer = base.changed({"W_dec": base.W_dec * norms[:, None]})
    assert "threshold=decoder-norm" not in {variant.flag for variant in variants(base)}
    other = chosen(longer, "threshold=decoder-norm")
    assert other is not None
    assert base.threshold is not None
    assert other.threshold is not None
    torch.testing.assert_close(other.threshold, torch.nn.Parameter(base.threshold / norms, requires_grad=False))


def test_square_matrices_may_be_stored_either_way() -> None:
    generator = torch.Generator().manual_seed(4)
    tensors = {name: torch.randn(D_MODEL, D_MODEL, generator=generator) for name in ("W_enc", "W_dec")}
    biases = {"b_enc": torch.zeros(D_MODEL), "b_dec": torch.zeros(D_MODEL)}
    square = InferenceSae(replace(facts("relu"), n_latents=D_MODEL), tensors | biases)
    flags = {variant.flag for variant in variants(square)}
    assert {"turned=W_enc", "turned=W_dec", "turned=both"} <= flags
    both = chosen(square, "turned=both")
    assert both is not None
    assert torch.equal(both.W_enc, square.W_enc.T)
    assert not any(flag.startswith("turned") for flag in (variant.flag for variant in variants(made("relu"))))


def test_a_variant_shares_its_tensors() -> None:
    sae = made("topk")
    pointers = {variant.sae.W_enc.data_ptr() for variant in variants(sae)}
    assert pointers == {sae.W_enc.data_ptr()}
