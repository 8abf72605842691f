"""Ours, exported, and loaded by the code of the other program."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.activation_functions import Activation
from orchestrator.config.job import Normalize
from tests.made_saes import ACTIVATIONS, NORMALIZATIONS, gated, inputs
from tests.peers.judging import assert_same, encode_and_decode, sparsify
from tests.peers.own_training import ours
from tests.peers.theirs import load_dictionary
from worker.formats import registry
from worker.sae.inference import InferenceSae

Peer = Callable[[str], Any]


def exported(sae: InferenceSae, format: str, folder: Path) -> str:
    registry.write(sae, folder, format=format)
    return str(folder)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saelens(activation: Activation, kind: Normalize, activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    sae = ours(activation, kind, activations)
    theirs = peer("sae_lens").SAE.load_from_disk(exported(sae, "saelens", tmp_path / "a"))
    assert_same(sae, encode_and_decode(theirs, activations), activations)
    assert theirs.cfg.metadata.hook_name == "blocks.3.hook_resid_post"
    assert theirs.cfg.metadata.model_name == "openai-community/gpt2"


def test_sparsify(activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    sae = ours("topk", "none", activations)
    theirs = peer("sparsify").SparseCoder.load_from_disk(exported(sae, "sparsify", tmp_path / "a"))
    assert_same(sae, sparsify(theirs, activations), activations)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dictionary_learning(activation: Activation, activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    sae = ours(activation, "none", activations)
    folder = exported(sae, "dictionary_learning", tmp_path / "a")
    assert_same(sae, encode_and_decode(load_dictionary(peer, Path(folder)), activations), activations)


@pytest.mark.parametrize("format", ["saelens", "dictionary_learning"])
def test_gated(format: str, peer: Peer, tmp_path: Path) -> None:
    folder, x = exported(gated(), format, tmp_path / "a"), inputs()
    is_saelens = format == "saelens"
    theirs = peer("sae_lens").SAE.load_from_disk(folder) if is_saelens else load_dictionary(peer, Path(folder))
    assert_same(gated(), encode_and_decode(theirs, x), x)


@pytest.mark.parametrize("skips", [False, True])
@pytest.mark.parametrize("activation", ["topk", "jumprelu", "relu"])
def test_transcoders(activation: Activation, skips: bool, activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    base = ours(activation, "none", activations)
    d_model = base.facts.d_model
    skip = {"W_skip": torch.randn(d_model, d_model, generator=torch.Generator().manual_seed(0))} if skips else {}
    sae = base.changed(skip, facts=replace(base.facts, subtracts_bias=False, target_hook_point="mlp"))
    if activation == "topk":
        coder = peer("sparsify").SparseCoder.load_from_disk(exported(sae, "sparsify", tmp_path / "a"))
        assert_same(sae, sparsify(coder, activations), activations)
    else:
        theirs = peer("sae_lens").SAE.load_from_disk(exported(sae, "saelens", tmp_path / "a"))
        assert_same(sae, encode_and_decode(theirs, activations), activations)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_saebench_takes_ours_for_an_sae_of_its_own(
    activation: Activation, kind: Normalize, activations: Tensor, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own check of a custom SAE, on real activations; only the model that it would fetch is a stand-in."""
    base = peer("sae_bench.custom_saes.base_sae")
    sae = ours(activation, kind, activations)
    assert base.BaseSAE.check_decoder_norms(sae)
    batch = activations[:96].view(2, 48, -1)

    class Model:
        @staticmethod
        def from_pretrained(name: str, device: torch.device) -> "Model":
            assert (name, device) == ("openai-community/gpt2", sae.device)
            return Model()

        def run_with_cache(self, _text: str, **asked: Any) -> tuple[None, dict[str, Tensor]]:
            assert asked["stop_at_layer"] == 4
            return None, {asked["names_filter"][0]: batch}

    monkeypatch.setattr(base, "HookedTransformer", Model)
    base.BaseSAE.test_sae(sae, sae.cfg.model_name)
