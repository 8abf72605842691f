"""Files as other programs lay them out, made by hand of our own weights: the same latents and reconstructions."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from orchestrator.errors import ConfigError
from tests.made_saes import D_MODEL, N_LATENTS, K, apart, gated, inputs, made
from worker.formats import registry
from worker.sae.inference import InferenceSae, Scales

WITHIN = 1e-6


def tensors_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)


def json_file(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def pickle_file(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(data), path)


def not_subtracting(kind: str) -> InferenceSae:
    base = next(made(name) for name in ("topk", "jumprelu", "relu") if name == kind)
    return base.changed({}, facts=replace(base.facts, subtracts_bias=False))


def assert_read(path: Path, format: str, wanted: InferenceSae, named: str = "") -> InferenceSae:
    found = registry.detect(path)
    assert found.name == format
    assert len(found.reasons) >= 1
    sae = registry.read(path, named=named).sae
    x = inputs()
    assert apart(sae.encode(x), wanted.encode(x)) < WITHIN
    assert torch.equal(sae.encode(x) > 0, wanted.encode(x) > 0)
    assert apart(sae(x), wanted(x)) < WITHIN
    return sae


@pytest.mark.parametrize("letter", ["w", "W"])
def test_gemma_scope(letter: str, tmp_path: Path) -> None:
    wanted = not_subtracting("jumprelu")
    assert wanted.threshold is not None
    folder = tmp_path / "models--google--gemma-scope-2b-pt-res" / "layer_5" / "width_16k" / "average_l0_60"
    folder.mkdir(parents=True)
    arrays = {f"{letter}_enc": wanted.W_enc, "b_enc": wanted.b_enc, f"{letter}_dec": wanted.W_dec}
    stored: dict[str, Any] = {name: value.numpy() for name, value in (arrays | {"b_dec": wanted.b_dec}).items()}
    np.savez(folder / "params.npz", threshold=wanted.threshold.numpy(), **stored)
    facts = assert_read(folder, "gemma_scope", wanted).facts
    assert (facts.subject, facts.layers, facts.site, facts.stated_l0) == ("google/gemma-2-2b", (5,), "resid_post", 60.0)
    assert (facts.subtracts_bias, facts.prepend_bos) == (False, True)


def test_gemma_scope_2_turns_the_skip_connection_of_a_transcoder(tmp_path: Path) -> None:
    base = not_subtracting("jumprelu")
    assert base.threshold is not None
    W_skip = torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(2))
    wanted = base.changed({"W_skip": W_skip}, facts=replace(base.facts, target_hook_point="out"))
    folder = tmp_path / "gemma-scope-2-4b-it" / "transcoder_all" / "layer_7_width_16k_l0_small_affine"
    given = {"w_enc": base.W_enc, "b_enc": base.b_enc, "w_dec": base.W_dec, "b_dec": base.b_dec}
    skip = {"affine_skip_connection": W_skip.T, "threshold": base.threshold}
    tensors_file(folder / "params.safetensors", given | skip)
    facts = assert_read(folder, "gemma_scope", wanted).facts
    assert (facts.subject, facts.layers, facts.site) == ("google/gemma-3-4b-it", (7,), None)
    assert facts.is_transcoder


def test_attn_out_of_gemma_scope_2_is_none_of_our_sites(tmp_path: Path) -> None:
    """It is the input of o_proj, not what attention adds to the residual stream."""
    base = not_subtracting("jumprelu")
    assert base.threshold is not None
    folder = tmp_path / "gemma-scope-2-4b-pt" / "attn_out" / "layer_7_width_16k_l0_small"
    given = {"w_enc": base.W_enc, "b_enc": base.b_enc, "w_dec": base.W_dec, "b_dec": base.b_dec}
    tensors_file(folder / "params.safetensors", given | {"threshold": base.threshold})
    facts = assert_read(folder, "gemma_scope", base).facts
    assert (facts.site, facts.hook_point) == (None, "the input of o_proj")


def llama_scope(folder: Path, theta: float, norms: tuple[float, float], *, hook_out: str | None = None) -> InferenceSae:
    """Write a Llama Scope shaped folder of our own weights; return what it is, its threshold in raw output units."""
    base = not_subtracting("relu")
    hook = "blocks.8.hook_resid_post"
    config = {"d_model": D_MODEL, "d_sae": N_LATENTS, "act_fn": "jumprelu", "jump_relu_threshold": theta}
    config |= {"hook_point_in": hook, "hook_point_out": hook_out or hook}
    json_file(
        folder / "hyperparams.json",
        config | {"dataset_average_activation_norm": dict(zip(("in", "out"), norms, strict=True))},
    )
    named = {"encoder.weight": base.W_enc.T, "encoder.bias": base.b_enc}
    named |= {"decoder.weight": base.W_dec.T, "decoder.bias": base.b_dec}
    tensors_file(folder / "checkpoints" / "final.safetensors", named)
    scales = Scales(input=D_MODEL**0.5 / norms[0], output=norms[1] / D_MODEL**0.5)
    facts = replace(base.facts, selection="batchtopk", normalize="fixed", target_hook_point=hook_out)
    return base.changed({"threshold": torch.tensor(theta / scales.output)}, facts=facts, scales=scales)


def test_llama_scope(tmp_path: Path) -> None:
    wanted = llama_scope(tmp_path, 0.4, (20.0, 20.0))
    facts = assert_read(tmp_path, "llama_scope", wanted).facts
    assert (facts.layers, facts.site, facts.normalize) == ((8,), "resid_post", "fixed")


def test_llama_scope_transcoder_has_another_scale_on_its_way_out(tmp_path: Path) -> None:
    wanted = llama_scope(tmp_path, 0.02, (20.0, 1.0), hook_out="blocks.8.hook_mlp_out")
    assert assert_read(tmp_path, "llama_scope", wanted).facts.target_hook_point == "blocks.8.hook_mlp_out"


def test_llama_scope_r1(tmp_path: Path) -> None:
    base = not_subtracting("jumprelu")
    assert base.threshold is not None
    hook = "blocks.15.hook_resid_post"
    config = {"d_model": D_MODEL, "expansion_factor": 3, "act_fn": "jumprelu", "hook_point_in": hook}
    norms = {"dataset_average_activation_norm": {"in": 30.0, "out": 30.0}}
    json_file(tmp_path / "config.json", config | {"hook_point_out": hook} | norms)
    named = {"encoder.weight": base.W_enc.T, "encoder.bias": base.b_enc, "log_jumprelu_threshold": base.threshold.log()}
    named |= {"decoder.weight": base.W_dec.T, "decoder.bias": base.b_dec}
    tensors_file(tmp_path / "sae_weights.safetensors", named)
    scales = Scales(input=D_MODEL**0.5 / 30, output=30 / D_MODEL**0.5)
    assert_read(tmp_path, "llama_scope", base.changed({}, facts=replace(base.facts, normalize="fixed"), scales=scales))


def test_qwen_scope(tmp_path: Path) -> None:
    wanted = not_subtracting("topk")
    folder = tmp_path / f"models--Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}" / "snapshots" / "0a1b"
    given = {"W_enc": wanted.W_enc.T, "W_dec": wanted.W_dec.T, "b_enc": wanted.b_enc, "b_dec": wanted.b_dec}
    pickle_file(folder / "layer9.sae.pt", {name: value.detach().contiguous() for name, value in given.items()})
    facts = assert_read(folder / "layer9.sae.pt", "qwen_scope", wanted).facts
    assert (facts.subject, facts.layers, facts.k) == ("Qwen/Qwen3-1.7B-Base", (9,), K)


def test_a_transcoder_of_circuit_tracer(tmp_path: Path) -> None:
    base = not_subtracting("relu")
    wanted = base.changed({}, facts=replace(base.facts, target_hook_point="out"))
    given = {"W_enc": base.W_enc.T, "W_dec": base.W_dec, "b_enc": base.b_enc, "b_dec": base.b_dec}
    tensors_file(tmp_path / "layer_4.safetensors", given)
    (tmp_path / "config.yaml").write_text("model_name: Qwen/Qwen3-4B\nfeature_input_hook: mlp.hook_in\n")
    facts = assert_read(tmp_path, "transcoder", wanted).facts
    assert (facts.subject, facts.layers, facts.hook_point) == ("Qwen/Qwen3-4B", (4,), "mlp.hook_in")


@pytest.mark.parametrize("prefix", ["", "autoencoder."])
def test_mlsae_takes_model_and_layers_from_its_name(prefix: str, tmp_path: Path) -> None:
    base = made("topk")
    facts = replace(base.facts, normalize="layer_norm")
    wanted = base.changed({"b_enc": torch.zeros(N_LATENTS)}, facts=facts, scales=Scales(undoes_eps=False))
    folder = tmp_path / "models--tim-lawson--mlsae-pythia-70m-deduped-x64-k32" / "snapshots" / "0a1b"
    config = {"n_inputs": D_MODEL, "n_latents": N_LATENTS, "k": K, "dead_steps_threshold": 9, "standardize": True}
    json_file(folder / "config.json", config)
    given = {"encoder.weight": base.W_enc.T, "decoder.weight": base.W_dec.T, "pre_encoder_bias": base.b_dec}
    rest = {"transformer.embed.weight": torch.zeros(3, 3)} if prefix else {}
    tensors_file(folder / "model.safetensors", {prefix + name: value for name, value in given.items()} | rest)
    found = assert_read(folder, "mlsae", wanted).facts
    assert (found.subject, found.layers) == ("EleutherAI/pythia-70m-deduped", (0, 1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("name", "config"),
    [("mlsae-pythia-70m-deduped-x64-k32-lens", {}), ("mlsae-pythia-70m-deduped-x64-k32-tfm", {"tuned_lens": True})],
)
def test_mlsae_in_the_space_of_a_lens_is_not_taken_for_one_of_raw_activations(
    name: str, config: dict[str, bool], tmp_path: Path
) -> None:
    registry.write(made("topk").changed({"b_enc": torch.zeros(N_LATENTS)}), tmp_path / name, format="mlsae")
    about = tmp_path / name / "config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | config))
    with pytest.raises(ConfigError, match="was trained in the space of a tuned lens, where mlsae gives the output"):
        registry.read(tmp_path / name)


def test_an_sae_in_the_space_of_a_lens_is_written_as_our_own_alone(tmp_path: Path) -> None:
    """Programs of before refuse the version: they would take it for one of raw activations."""
    base = made("topk")
    sae = base.changed({}, facts=replace(base.facts, lens="a" * 64))
    for format in set(registry.WRITTEN) - {"orch"}:
        with pytest.raises(ConfigError, match="has no word for the space of a tuned lens"):
            registry.write(sae, tmp_path / format, format=format)
    registry.write(sae, tmp_path / "ours", format="orch")
    assert registry.read(tmp_path / "ours").facts.lens == "a" * 64
    assert json.loads((tmp_path / "ours" / "cfg.json").read_text())["version"] == 2
    registry.write(base, tmp_path / "raw", format="orch")
    assert json.loads((tmp_path / "raw" / "cfg.json").read_text())["version"] == 1


def test_several_layers_go_to_mlsae_and_to_no_format_of_one(tmp_path: Path) -> None:
    base = made("topk", "layer_norm")
    several = replace(base.facts, layers=(0, 2, 5), subject="a/model")
    sae = base.changed({"b_enc": torch.zeros_like(base.b_enc)}, facts=several)
    registry.write(sae, tmp_path / "written", format="mlsae")
    found = registry.read(tmp_path / "written").sae.facts
    assert (found.layers, found.subject) == ((0, 2, 5), "a/model")
    for format in set(registry.WRITTEN) - {"mlsae", "orch"}:
        with pytest.raises(ConfigError, match="of one layer, and this one reads layers 0, 2, 5"):
            registry.write(sae, tmp_path / format, format=format)


def test_mlsae_of_one_layer(tmp_path: Path) -> None:
    base = made("topk").changed({"b_enc": torch.zeros(N_LATENTS)})
    registry.write(base, tmp_path / "sae-gpt2-x4-k5-layers-3", format="mlsae")
    facts = assert_read(tmp_path / "sae-gpt2-x4-k5-layers-3", "mlsae", base).facts
    assert (facts.subject, facts.layers) == ("openai-community/gpt2", (3,))


def openai_state(sae: InferenceSae, activation: str) -> dict[str, Any]:
    return {
        "pre_bias": sae.b_dec.data, "encoder.weight": sae.W_enc.data.T.contiguous(), "latent_bias": sae.b_enc.data,
        "decoder.weight": sae.W_dec.data.T.contiguous(), "stats_last_nonzero": torch.zeros(N_LATENTS).long(),
        "activation": activation,
        "activation_state_dict": {"k": K, "postact_fn": "ReLU"} if activation == "TopK" else {},
    }  # fmt: skip


def test_openai_topk_is_of_normalised_vectors_and_relu_is_not(tmp_path: Path) -> None:
    """Nothing in the file says so."""
    topk = made("topk")
    facts = replace(topk.facts, normalize="layer_norm")
    pickle_file(tmp_path / "v5" / "8.pt", openai_state(topk, "TopK"))
    wanted = topk.changed({}, facts=facts, scales=Scales(undoes_eps=False))
    assert assert_read(tmp_path / "v5" / "8.pt", "openai", wanted).facts.normalize == "layer_norm"
    relu = made("relu")
    pickle_file(tmp_path / "v1" / "8.pt", openai_state(relu, "ReLU"))
    assert assert_read(tmp_path / "v1", "openai", relu).facts.normalize == "none"


DICT_CLASSES = {
    "AutoEncoder": ("relu", True), "AutoEncoderNew": ("relu", False), "AutoEncoderTopK": ("topk", True),
    "BatchTopKSAE": ("batchtopk", True), "MatryoshkaBatchTopKSAE": ("batchtopk", True),
    "JumpReluAutoEncoder": ("jumprelu", False), "GatedAutoEncoder": ("gated", True),
}  # fmt: skip


def dictionary_learning_state(name: str, sae: InferenceSae) -> dict[str, Tensor]:
    linear = {"encoder.weight": sae.W_enc.T, "decoder.weight": sae.W_dec.T}
    matrices = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": sae.b_enc, "b_dec": sae.b_dec}
    bias = {"encoder.bias": sae.b_enc}
    threshold = {} if sae.threshold is None else {"threshold": sae.threshold}
    named: dict[str, dict[str, Tensor]] = {
        "AutoEncoder": {**linear, **bias, "bias": sae.b_dec},
        "AutoEncoderNew": {**linear, **bias, "decoder.bias": sae.b_dec},
        "AutoEncoderTopK": {**linear, **bias, "b_dec": sae.b_dec, "threshold": torch.tensor(-1.0)},
        "BatchTopKSAE": {**linear, **bias, "b_dec": sae.b_dec, **threshold},
        "MatryoshkaBatchTopKSAE": {**matrices, **threshold, "group_sizes": torch.tensor([16, 32])},
        "JumpReluAutoEncoder": {**matrices, **threshold},
    }
    if name == "GatedAutoEncoder":
        assert sae.b_mag is not None
        assert sae.r_mag is not None
        magnitudes = {"r_mag": sae.r_mag, "mag_bias": sae.b_mag}
        named[name] = {**linear, "decoder_bias": sae.b_dec, "gate_bias": sae.b_enc, **magnitudes}
    return {key: value.detach().clone().contiguous() for key, value in named[name].items()}


def dictionary_learning_sae(name: str) -> InferenceSae:
    selection, subtracts = DICT_CLASSES[name]
    known = {"relu": "relu", "topk": "topk", "jumprelu": "jumprelu"}
    base = gated() if selection == "gated" else made("batchtopk") if selection == "batchtopk" else None
    base = base or next(made(kind) for kind in ("relu", "topk", "jumprelu") if kind == known[selection])
    return base.changed({}, facts=replace(base.facts, subtracts_bias=subtracts))


@pytest.mark.parametrize("name", DICT_CLASSES)
def test_dictionary_learning(name: str, tmp_path: Path) -> None:
    wanted = dictionary_learning_sae(name)
    trainer = {"dict_class": name, "k": K, "layer": 4, "lm_name": "EleutherAI/pythia-70m", "submodule_name": "resid"}
    json_file(tmp_path / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 64}})
    pickle_file(tmp_path / "ae.pt", dictionary_learning_state(name, wanted))
    facts = assert_read(tmp_path, "dictionary_learning", wanted).facts
    assert (facts.subject, facts.layers, facts.context_length) == ("EleutherAI/pythia-70m", (4,), 64)


@pytest.mark.parametrize("name", DICT_CLASSES)
def test_a_backup_of_dictionary_learning_is_of_scaled_activations(name: str, tmp_path: Path) -> None:
    """`backup_steps` overwrites ae.pt; its biases still want activations divided by norm_factor."""
    of_scaled = dictionary_learning_sae(name)
    json_file(tmp_path / "config.json", {"trainer": {"dict_class": name, "k": K, "layer": 4, "lm_name": "m"}})
    backup = {"step": 9, "ae": dictionary_learning_state(name, of_scaled), "norm_factor": 5.0, "optimizer": {}}
    pickle_file(tmp_path / "ae.pt", backup)
    sae = registry.read(tmp_path).sae
    assert apart(sae(inputs() * 5), of_scaled(inputs()) * 5) < WITHIN


def test_saelens_training_checkpoint_of_batchtopk_has_its_latents_times_the_decoders_norms(tmp_path: Path) -> None:
    base = made("batchtopk")
    assert base.threshold is not None
    norms = torch.linspace(0.5, 2, N_LATENTS)
    given = {"W_enc": base.W_enc / norms, "b_enc": base.b_enc / norms, "W_dec": base.W_dec * norms[:, None]}
    tensors_file(
        tmp_path / "sae_weights.safetensors",
        given | {"b_dec": base.b_dec, "topk_threshold": base.threshold.double()},
    )
    config = {"architecture": "matryoshka_batchtopk", "d_in": D_MODEL, "d_sae": N_LATENTS, "k": 5.0}
    known = {"aux_loss_coefficient": 1.0, "decoder_init_norm": 0.1, "metadata": {"model_name": "gpt2"}}
    json_file(tmp_path / "cfg.json", config | known)
    assert_read(tmp_path, "saelens", base)


def test_a_flat_config_of_before_saelens_6(tmp_path: Path) -> None:
    wanted = made("topk")
    config = {"d_in": D_MODEL, "d_sae": N_LATENTS, "hook_point": "blocks.2.hook_resid_pre", "model_name": "gpt2-small"}
    known = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False}
    json_file(tmp_path / "cfg.json", config | known | {"context_size": 128})
    given = {"W_enc": wanted.W_enc, "b_enc": wanted.b_enc, "W_dec": wanted.W_dec, "b_dec": wanted.b_dec}
    tensors_file(tmp_path / "sae_weights.safetensors", given)
    facts = assert_read(tmp_path, "saelens", wanted).facts
    assert (facts.layers, facts.site) == ((1,), "resid_post"), "what goes into a block is what the one before it gives"
    assert (facts.subject, facts.context_length, facts.prepend_bos) == ("gpt2-small", 128, True)


def test_saelens_input_scale_is_read_where_it_is_written(tmp_path: Path) -> None:
    base = made("topk")
    wanted = base.changed({}, facts=replace(base.facts, normalize="fixed"), scales=Scales(input=0.25, output=4.0))
    registry.write(base, tmp_path / "a", format="saelens")
    config = json.loads((tmp_path / "a" / "cfg.json").read_text())
    json_file(tmp_path / "a" / "cfg.json", config | {"normalize_activations": "expected_average_only_in"})
    json_file(tmp_path / "a" / "activation_scaler.json", {"scaling_factor": 0.25})
    assert_read(tmp_path / "a", "saelens", wanted)


def test_sparsify_counts_its_latents_by_expansion_where_the_config_says_0(tmp_path: Path) -> None:
    wanted = made("topk")
    folder = tmp_path / "run" / "layers.3"
    registry.write(wanted, folder, format="sparsify")
    config = json.loads((folder / "cfg.json").read_text())
    json_file(
        folder / "cfg.json", config | {"num_latents": 0, "expansion_factor": N_LATENTS // D_MODEL, "signed": True}
    )
    json_file(folder.parent / "config.json", {"model": "HuggingFaceTB/SmolLM2-135M", "ctx_len": 2048})
    facts = assert_read(folder, "sparsify", wanted).facts
    assert (facts.subject, facts.layers, facts.site) == ("HuggingFaceTB/SmolLM2-135M", (3,), "resid_post")
