"""Theirs, trained for some steps and saved by their own code, and read by ours; and from one of them to another."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.peers import judging, theirs
from tests.peers.judging import assert_same, encode_and_decode
from worker.formats import registry
from worker.saes.exporting import at_layer

Peer = Callable[[str], Any]
SAELENS = ("standard", "topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated")
PER_VECTOR = ("layer_norm", "constant_norm_rescale")
TRAINERS = (
    "TopKTrainer", "BatchTopKTrainer", "MatryoshkaBatchTopKTrainer", "JumpReluTrainer", "StandardTrainer",
    "StandardTrainerAprilUpdate", "GatedSAETrainer",
)  # fmt: skip


def read(folder: Path, format: str) -> Any:
    assert registry.detect(folder).name == format
    return registry.read(folder).sae


@pytest.mark.parametrize(
    ("kind", "normalize"),
    [
        *((kind, "none") for kind in SAELENS),
        # Its matryoshka decodes more than once and then has lost what it normalised by: it cannot be trained so.
        *((kind, name) for kind in SAELENS if kind != "matryoshka_batchtopk" for name in PER_VECTOR),
    ],
)
def test_saelens(kind: str, normalize: str, activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    """The inference SAE that it saves, and the training SAE of a checkpoint, which are the same."""
    sae = theirs.saelens(peer, kind, activations, normalize_activations=normalize)
    sae.save_inference_model(str(tmp_path / "inference"))
    sae.save_model(str(tmp_path / "training"))
    judge = encode_and_decode(peer("sae_lens").SAE.load_from_disk(str(tmp_path / "inference")), activations)
    for name in ("inference", "training"):
        assert_same(read(tmp_path / name, "saelens"), judge, activations)


@pytest.mark.parametrize("kind", ["Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"])
def test_transcoders_of_saelens(kind: str, activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    module = peer("sae_lens.saes.transcoder")
    torch.manual_seed(0)
    sizes = {"d_in": activations.shape[1], "d_sae": theirs.N_LATENTS, "d_out": 24, "apply_b_dec_to_input": False}
    sae = getattr(module, kind)(getattr(module, f"{kind}Config")(**sizes))
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    sae.save_model(str(tmp_path / "a"))
    found = read(tmp_path / "a", "saelens")
    assert found.facts.is_transcoder
    assert_same(found, encode_and_decode(sae, activations), activations)


@pytest.mark.parametrize(("transcodes", "skips"), [(False, False), (True, False), (True, True)])
def test_sparsify(transcodes: bool, skips: bool, activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    sae = theirs.sparsify(peer, activations, transcodes=transcodes, skips=skips)
    sae.save_to_disk(tmp_path / "layers.2")
    found = read(tmp_path / "layers.2", "sparsify")
    assert found.facts.is_transcoder == transcodes
    assert_same(found, judging.sparsify(sae, activations), activations)


@pytest.mark.parametrize("name", TRAINERS)
def test_dictionary_learning(name: str, activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    trainer = theirs.dictionary_learning(peer, name, activations)
    theirs.save_dictionary_learning(trainer, tmp_path / "trainer_0")
    sae = theirs.load_dictionary(peer, tmp_path / "trainer_0")
    assert_same(read(tmp_path / "trainer_0", "dictionary_learning"), encode_and_decode(sae, activations), activations)


def test_from_sparsify_to_saelens(activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    """Its own loader of sparsify takes num_latents 0 for no latents and turns W_dec: through us it works."""
    coder = theirs.sparsify(peer, activations)
    coder.save_to_disk(tmp_path / "layers.2")
    registry.write(read(tmp_path / "layers.2", "sparsify"), tmp_path / "out", format="saelens")
    sae = peer("sae_lens").SAE.load_from_disk(str(tmp_path / "out"))
    assert_same(read(tmp_path / "out", "saelens"), judging.sparsify(coder, activations), activations)
    assert_same(read(tmp_path / "layers.2", "sparsify"), encode_and_decode(sae, activations), activations)


def test_from_saelens_to_dictionary_learning_and_sparsify(activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    sae = theirs.saelens(peer, "topk", activations)
    sae.save_inference_model(str(tmp_path / "a"))
    found = read(tmp_path / "a", "saelens")
    registry.write(found, tmp_path / "b", format="dictionary_learning")
    registry.write(found, tmp_path / "c", format="sparsify")
    other = theirs.load_dictionary(peer, tmp_path / "b")
    coder = peer("sparsify").SparseCoder.load_from_disk(tmp_path / "c")
    assert_same(found, encode_and_decode(other, activations), activations)
    assert_same(found, judging.sparsify(coder, activations), activations)


def test_from_mlsae_to_saelens(activations: Tensor, peer: Peer, tmp_path: Path) -> None:
    """Which no other program reads. Judged by mlsae's own formula: nothing of it can be installed here."""
    generator = torch.Generator().manual_seed(1)
    d_model = activations.shape[1]
    W_enc, W_dec = (torch.randn(theirs.N_LATENTS, d_model, generator=generator) * 0.1 for _ in range(2))
    bias = torch.randn(d_model, generator=generator) * 0.1
    folder = tmp_path / "mlsae-pythia-70m-deduped-x2-k8"
    folder.mkdir()
    tensors = {"encoder.weight": W_enc, "decoder.weight": W_dec.T.contiguous(), "pre_encoder_bias": bias}
    peer("safetensors.torch").save_file(tensors, folder / "model.safetensors")
    config = {"n_inputs": d_model, "n_latents": theirs.N_LATENTS, "k": theirs.K, "standardize": True}
    (folder / "config.json").write_text(peer("json").dumps(config))
    registry.write(at_layer(read(folder, "mlsae"), 3), tmp_path / "out", format="saelens")
    sae = peer("sae_lens").SAE.load_from_disk(str(tmp_path / "out"))

    mean = activations.mean(1, keepdim=True)
    std = (activations - mean).std(1, keepdim=True)
    values, indices = (((activations - mean) / (std + 1e-5) - bias) @ W_enc.T).topk(theirs.K)
    z = torch.zeros(len(activations), theirs.N_LATENTS).scatter(1, indices, values.relu())
    judge = judging.Judged(z, (z @ W_dec + bias) * std + mean)
    assert_same(read(folder, "mlsae"), judge, activations)
    assert_same(read(tmp_path / "out", "saelens"), encode_and_decode(sae, activations), activations)
