"""Ours -> a format -> ours: the same latents and the same reconstruction of raw activations, or a refusal with why."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.config.job import Normalize
from orchestrator.errors import ConfigError
from tests.made_saes import ACTIVATIONS, NORMALIZATIONS, apart, gated, inputs, made
from worker.formats import fold, registry
from worker.sae.inference import InferenceSae, Scales

WITHIN = 1e-5
KINDS = (*ACTIVATIONS, "gated")


def sae_of(kind: str, normalize: Normalize) -> InferenceSae:
    return next(made(name, normalize) for name in ACTIVATIONS if name == kind) if kind != "gated" else gated()


def through(sae: InferenceSae, format: str, folder: Path) -> InferenceSae:
    registry.write(sae, folder, format=format)
    assert registry.detect(folder).name == format
    return registry.read(folder).sae


def assert_same(found: InferenceSae, wanted: InferenceSae) -> None:
    x = inputs()
    z, wanted_z = found.encode(x), wanted.encode(x)
    assert apart(z, wanted_z) < WITHIN
    assert torch.equal(z > 0, wanted_z > 0)
    assert apart(found(x), wanted(x)) < WITHIN
    assert apart(found.decode(z), wanted(x)) < WITHIN


def holds(format: str, kind: str, normalize: Normalize) -> bool:
    """Say whether a format holds an SAE of a kind: the matrix of docs/formats.md."""
    match format:
        case "orch" | "saelens":
            return True
        case "sparsify":
            return kind == "topk" and normalize == "none"
        case "dictionary_learning":
            return normalize == "none"
        case "openai":
            return (kind == "topk" and normalize != "none") or (kind == "relu" and normalize == "none")
        case "mlsae":
            return kind == "topk" and normalize != "none"
    raise AssertionError(format)


@pytest.mark.parametrize(
    ("kind", "normalize"),
    [*((kind, normalize) for kind in ACTIVATIONS for normalize in NORMALIZATIONS), ("gated", "none")],
)
@pytest.mark.parametrize("format", registry.WRITTEN)
def test_round_trip(format: str, kind: str, normalize: Normalize, tmp_path: Path) -> None:
    sae = sae_of(kind, normalize)
    if not holds(format, kind, normalize):
        with pytest.raises(ConfigError):
            registry.write(sae, tmp_path / "out", format=format)
        assert not any(tmp_path.iterdir())
        return
    again = through(sae, format, tmp_path / "out")
    assert_same(again, sae)
    stated = again.facts
    assert (stated.subject or sae.facts.subject, stated.d_model, stated.n_latents) == (
        sae.facts.subject, sae.facts.d_model, sae.facts.n_latents,
    )  # fmt: skip


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_mlsae_holds_what_has_no_bias_of_the_latents(normalize: Normalize, tmp_path: Path) -> None:
    sae = made("topk", normalize)
    without = sae.changed({"b_enc": torch.zeros_like(sae.b_enc)})
    assert_same(through(without, "mlsae", tmp_path / "out"), without)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("centred", [False, True])
def test_mlsae_has_a_bias_of_the_latents_in_the_encoder_of_standardised_vectors(
    centred: bool, normalize: Normalize, tmp_path: Path
) -> None:
    """Where b_dec has the mean 0, as training leaves it, reconstructions shift by 0.001 of a standard deviation."""
    made_so = made("topk", normalize)
    sae = made_so.changed({"b_dec": made_so.b_dec - made_so.b_dec.mean()}) if centred else made_so
    if normalize == "none":
        with pytest.raises(ConfigError, match="mlsae has no bias of the latents"):
            registry.write(sae, tmp_path / "out", format="mlsae")
        assert not any(tmp_path.iterdir())
        return
    found, x = through(sae, "mlsae", tmp_path / "out"), inputs()
    z, wanted = found.encode(x), sae.encode(x)
    assert apart(z, wanted) < 1e-4
    assert torch.equal(z > 0, wanted > 0)
    shift = (found(x) - sae(x)) / x.std(1, keepdim=True)
    assert float(shift.abs().max()) < 1.5e-3
    assert centred or float(shift.abs().max()) < WITHIN * 10, "b_dec has a component to stand on: nothing is moved"


def test_chains(tmp_path: Path) -> None:
    sae = made("topk", "none")
    first = through(sae, "saelens", tmp_path / "1")
    assert_same(through(first, "orch", tmp_path / "2"), sae)
    second = through(sae, "sparsify", tmp_path / "3")
    third = through(through(second, "orch", tmp_path / "4"), "saelens", tmp_path / "5")
    assert_same(third, sae)


def test_from_sparsify_to_saelens_and_from_mlsae_to_anything(tmp_path: Path) -> None:
    """Which fails with their own loaders, or has none."""
    sparsify = through(made("topk", "none"), "sparsify", tmp_path / "1")
    assert_same(through(sparsify, "saelens", tmp_path / "2"), made("topk", "none"))
    base = made("topk", "layer_norm")
    mlsae = through(base.changed({"b_enc": torch.zeros_like(base.b_enc)}), "mlsae", tmp_path / "3")
    for format in ("saelens", "openai", "orch"):
        assert_same(through(mlsae, format, tmp_path / format), mlsae)


def test_a_bias_moves_into_the_encoder_where_a_format_subtracts_it_or_does_not(tmp_path: Path) -> None:
    """dictionary_learning's JumpReLU subtracts nothing, its other classes and sparsify subtract b_dec."""
    for format, sae in (("dictionary_learning", made("jumprelu")), ("sparsify", made("topk"))):
        subtracts = sae.facts.subtracts_bias
        other = fold.bias_subtracted(sae, not subtracts)
        assert_same(other, sae)
        assert_same(through(other, format, tmp_path / format), sae)
    assert_same(fold.bias_subtracted(gated(), False), gated())


def test_scales_of_input_and_output_move_into_the_weights(tmp_path: Path) -> None:
    base = made("jumprelu")
    for output in (4.0, 0.3):
        fixed = replace(base.facts, normalize="fixed")
        sae = base.changed({}, facts=fixed, scales=Scales(input=0.25, output=output))
        for format in ("saelens", "dictionary_learning", "orch"):
            assert_same(through(sae, format, tmp_path / f"{format}{output}"), sae)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("skips", [False, True])
def test_transcoders(kind: str, skips: bool, tmp_path: Path) -> None:
    base = sae_of(kind, "none")
    skip = {"W_skip": torch.randn(16, 16, generator=torch.Generator().manual_seed(1))} if skips else {}
    sae = base.changed(skip, facts=replace(base.facts, subtracts_bias=False, target_hook_point="the MLP's output"))
    for format in ("orch", "sparsify" if kind == "topk" else "saelens"):
        again = through(sae, format, tmp_path / format)
        assert again.facts.is_transcoder
        assert_same(again, sae) if not skips else assert_forward(again, sae)
    for format in ("dictionary_learning", "openai", "mlsae", "saelens" if kind == "topk" else "sparsify"):
        with pytest.raises(ConfigError, match=r"transcoder|topk alone|topk and relu"):
            registry.write(sae, tmp_path / "no", format=format)


def assert_forward(found: InferenceSae, wanted: InferenceSae) -> None:
    assert apart(found.encode(inputs()), wanted.encode(inputs())) < WITHIN
    assert apart(found(inputs()), wanted(inputs())) < WITHIN


def test_the_matrix_in_the_documentation() -> None:
    """The table of docs/formats.md is what was tried here."""
    rows = []
    for format in registry.WRITTEN:
        cells = [", ".join(n for n in NORMALIZATIONS if holds(format, kind, n)) or "refused" for kind in ACTIVATIONS]
        if format == "mlsae":  # as the tests of it say
            cells[0] = "unit, layer_norm; none where b_enc is 0"
        cells.append("as it is" if holds(format, "gated", "none") else "refused")
        rows.append(f"| {format} | " + " | ".join(cells) + " |")
    head = ["format", *KINDS]
    table = "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])
    print(table)
    assert table in (Path(__file__).parents[4] / "docs" / "formats.md").read_text()
