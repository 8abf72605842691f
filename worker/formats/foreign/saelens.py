"""SAELens: a folder of cfg.json and sae_weights.safetensors. Source: sae-lens 6.54, `sae_lens/saes`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.config.hook_names import place, transformer_lens_name
from orchestrator.config.sae_facts import InputNormalization, SaeFacts, Selection
from orchestrator.errors import ConfigError
from worker import checked_folder
from worker.formats import fold, stored_tensors
from worker.formats.tensor_file import write_tensors
from worker.sae.inference import InferenceSae, Scales

_CONFIG, _WEIGHTS, _SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
_VERSION = "6.0.0"
"""Of the first SAELens that reads what is written here; below it a config is taken for one of the old, flat kind."""
_KINDS: dict[str, Selection] = {
    "standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated",
    "batchtopk": "batchtopk", "matryoshka_batchtopk": "batchtopk",
    "transcoder": "relu", "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu", "jumprelu_skip_transcoder": "jumprelu",
}  # fmt: skip
_NORMALIZATIONS: dict[str, InputNormalization] = {
    "none": "none", "layer_norm": "layer_norm", "constant_norm_rescale": "constant_norm",
    "expected_average_only_in": "fixed",
}  # fmt: skip
_FLAT_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_BIASES: dict[Selection, dict[str, str]] = {"gated": {"b_gate": "b_enc", "b_mag": "b_mag", "r_mag": "r_mag"}}


def reasons(path: Path) -> list[str]:
    """Return what speaks for SAELens."""
    config = stored_tensors.json_or_nothing(stored_tensors.beside(path, _CONFIG))
    found = [f"there is {_WEIGHTS}"] if stored_tensors.find(path, _WEIGHTS) else []
    return found + [f"{_CONFIG} has {key}" for key in ("d_in", "d_sae") if key in config] if "d_sae" in config else []


def read(path: Path, named: str = "") -> InferenceSae:
    """Return the SAE of a folder that SAELens wrote: of an inference SAE, or a training one.

    Raises:
        ConfigError: a file, a key or a tensor is missing or wrong, or it is of a kind that is not known here.
    """
    folder = path if path.is_dir() else path.parent
    where = folder / _CONFIG
    stored = stored_tensors.read_json(where)
    config = stored if "metadata" in stored else _from_flat(stored)
    kind = stored_tensors.value(config, "architecture", where)
    if kind not in _KINDS:
        raise ConfigError(f"the architecture {kind!r} of {where} is not known (known: {', '.join(_KINDS)})")
    n_latents = stored_tensors.whole_number(config, "d_sae", where)
    d_model = stored_tensors.whole_number(config, "d_in", where)
    tensors = _tensors(folder / _WEIGHTS, _KINDS[kind], d_model, n_latents)
    if _rescales(config):
        tensors = _by_decoder_norm(tensors)
    normalize, scales = _normalization(config, folder)
    meta = config["metadata"]
    layer, site = place(meta.get("hook_name"))
    facts = SaeFacts(
        selection=_KINDS[kind],
        d_model=d_model,
        n_latents=n_latents,
        normalize=normalize,
        subtracts_bias=bool(config.get("apply_b_dec_to_input", True)) and "transcoder" not in kind,
        dtype=stored_tensors.dtype_name(tensors["W_enc"]),
        k=stored_tensors.whole_number(config, "k", where) if kind == "topk" else None,
        subject=meta.get("model_name"),
        layers=() if layer is None else (layer,),
        site=site,
        hook_point=meta.get("hook_name"),
        target_hook_point=(meta.get("hook_name_out") or "not said") if "transcoder" in kind else None,
        context_length=meta.get("context_size"),
        prepend_bos=meta.get("prepend_bos"),
        stated_l0=meta.get("l0"),
    )
    if facts.is_transcoder and normalize != "none":
        raise ConfigError(f"{where}: a transcoder with normalize_activations {config['normalize_activations']!r}")
    return InferenceSae(facts, tensors, scales=scales)


def fill(sae: InferenceSae) -> Callable[[Path], None]:
    """Return what writes an SAE as SAELens does for inference.

    topk, relu (`standard`), jumprelu and gated as they are; batchtopk as jumprelu with one threshold for all, as
    SAELens saves its own. `normalize: unit` becomes layer_norm, `fixed` goes into the weights.

    Raises:
        ConfigError: there is no such SAE in SAELens.
    """
    fold.refuse_rank(sae, "SAELens")
    sae = fold.unit_as_layer_norm(fold.without_input_scale(sae))
    facts = sae.facts
    kind = {"batchtopk": "jumprelu", "relu": "standard"}.get(facts.selection, facts.selection)
    if facts.is_transcoder or sae.W_skip is not None:
        if kind not in {"standard", "jumprelu"} or facts.normalize != "none":
            raise ConfigError(
                f"SAELens has no transcoder with {facts.selection} and normalize: {facts.normalize}",
                hint="Its transcoders are relu and jumprelu, of activations as they are.",
            )
        sae = fold.bias_subtracted(sae, False)
        kind = "_".join(
            [*(["jumprelu"] if kind == "jumprelu" else []), *(["skip"] if sae.W_skip is not None else []), "transcoder"]
        )
    tensors = sae.tensors()
    for theirs, ours in _BIASES.get(facts.selection, {}).items():
        tensors[theirs] = tensors.pop(ours)
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold.expand(facts.n_latents)
    config = _config(sae, kind)

    def write(folder: Path) -> None:
        write_tensors(folder / _WEIGHTS, tensors)
        checked_folder.write_text(folder / _CONFIG, json.dumps(config, indent=2))

    return write


def _config(sae: InferenceSae, kind: str) -> dict[str, Any]:
    facts = sae.facts
    back = {ours: theirs for theirs, ours in _NORMALIZATIONS.items()}
    stated = {
        "model_name": facts.subject,
        "hook_name": transformer_lens_name(facts) or facts.hook_point,
        "hf_hook_name": facts.hook_point,
        "hook_name_out": facts.target_hook_point,
        "context_size": facts.context_length,
        "prepend_bos": facts.prepend_bos,
        "l0": facts.stated_l0,
    }
    config = {
        "architecture": kind,
        "d_in": facts.d_model,
        "d_sae": facts.n_latents,
        "dtype": stored_tensors.dtype_name(sae.W_dec),
        "device": "cpu",
        "apply_b_dec_to_input": sae.facts.subtracts_bias,
        "normalize_activations": back[facts.normalize],
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": _VERSION, "exported_by": "orch"}
        | {name: value for name, value in stated.items() if value is not None},
    }
    if kind == "topk":
        config |= {"k": facts.k, "rescale_acts_by_decoder_norm": False}
    return config | ({"d_out": len(sae.b_dec)} if "transcoder" in kind else {})


def _from_flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config of before SAELens 6 as one of today, as its `handle_pre_6_0_config` does."""
    new = {_FLAT_NAMES.get(key, key): value for key, value in config.items()}
    if new.get("finetuning_scaling_factor"):
        raise ConfigError("an SAE with finetuning_scaling_factor has latents that are scaled once more: not known here")
    arguments = new.get("activation_fn_kwargs") or {}
    if new.get("activation_fn") == "topk" and "k" in arguments:
        new |= {"architecture": "topk", "k": arguments["k"]}
    kind = new.get("normalize_activations")
    if not isinstance(kind, str):
        new["normalize_activations"] = "expected_average_only_in" if kind else "none"
    return {"architecture": "standard", "prepend_bos": True, **new, "metadata": {"prepend_bos": True, **new}}


def _tensors(path: Path, selection: Selection, d_model: int, n_latents: int) -> dict[str, Tensor]:
    found = stored_tensors.load(path)
    if "topk_threshold" in found:  # of an SAE in training
        found["threshold"] = found.pop("topk_threshold").to(found["W_dec"].dtype)
    names = _BIASES.get(selection, {"b_enc": "b_enc"})
    needs = ["W_enc", "W_dec", "b_dec", *names, *(["threshold"] if selection in {"jumprelu", "batchtopk"} else [])]
    stored_tensors.need(found, needs, path)
    tensors = {names.get(name, name): found[name] for name in [*needs, *(["W_skip"] if "W_skip" in found else [])]}
    tensors["W_enc"] = stored_tensors.oriented(tensors["W_enc"], d_model, n_latents)
    tensors["W_dec"] = stored_tensors.oriented(tensors["W_dec"], n_latents, tensors["b_dec"].shape[-1])
    return tensors


def _rescales(config: dict[str, Any]) -> bool:
    """Say whether latents are multiplied by the norms of the decoder's rows; in training by default."""
    is_training = "aux_loss_coefficient" in config or "decoder_init_norm" in config
    default = is_training and "topk" in config["architecture"]
    return bool(config.get("rescale_acts_by_decoder_norm", default))


def _by_decoder_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    norms = torch.linalg.vector_norm(tensors["W_dec"], dim=1)
    if torch.allclose(norms, torch.ones_like(norms), atol=1e-7, rtol=0):
        return tensors
    return tensors | {
        "W_enc": tensors["W_enc"] * norms,
        "b_enc": tensors["b_enc"] * norms,
        "W_dec": tensors["W_dec"] / norms[:, None],
    }


def _normalization(config: dict[str, Any], folder: Path) -> tuple[InputNormalization, Scales]:
    kind = config.get("normalize_activations") or "none"
    if kind not in _NORMALIZATIONS:
        raise ConfigError(f"normalize_activations {kind!r} is not known (known: {', '.join(_NORMALIZATIONS)})")
    if kind != "expected_average_only_in":
        return _NORMALIZATIONS[kind], Scales(undoes_eps=False)
    factor = stored_tensors.json_or_nothing(folder / _SCALER).get("scaling_factor")
    if not isinstance(factor, float | int) or not factor > 0:
        raise ConfigError(
            f"{folder} multiplies its input by a number ({kind}) that is in none of its files",
            hint=f"SAELens puts it into {_SCALER} while it trains, and into the weights when it is done.",
        )
    return "fixed", Scales(input=float(factor), output=1 / float(factor))
