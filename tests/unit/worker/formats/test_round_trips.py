"""Ours -> a format -> ours: the same latents and the same reconstruction of raw activations, or a refusal with why."""

from pathlib import Path

import pytest
import torch

from orchestrator.config.job import Normalize
from orchestrator.errors import ConfigError
from tests.made_saes import ACTIVATIONS, NORMALIZATIONS, apart, gated, inputs, made
from worker.formats import registry
from worker.sae.inference import InferenceSae

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
    raise AssertionError(format)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", registry.WRITTEN)
def test_round_trip(format: str, kind: str, normalize: Normalize, tmp_path: Path) -> None:
    if kind == "gated" and normalize != "none":
        pytest.skip("gated SAEs are not trained here")
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
