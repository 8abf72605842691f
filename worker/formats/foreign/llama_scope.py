"""Llama Scope and Llama Scope R1: SAEs and transcoders of activations that are scaled by a norm of their data set."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.config.hook_names import place
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.errors import ConfigError
from worker.formats import stored_tensors
from worker.sae.inference import InferenceSae, Scales

_FIRST, _FIRST_WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
_R1, _R1_WEIGHTS = "config.json", "sae_weights.safetensors"
_LOG_THRESHOLD = "log_jumprelu_threshold"
_TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_SUBJECT = "meta-llama/Llama-3.1-8B"


def reasons(path: Path) -> list[str]:
    """Return what speaks for Llama Scope."""
    folder = path if path.is_dir() else path.parent
    for config_name, weights_name in ((_FIRST, _FIRST_WEIGHTS), (_R1, _R1_WEIGHTS)):
        config = stored_tensors.json_or_nothing(stored_tensors.find(folder, config_name))
        weights = folder / weights_name
        if {"hook_point_in", "d_model"} <= config.keys() and set(_TENSORS) <= stored_tensors.names(weights):
            return [f"{config_name} has hook_point_in", f"{weights_name} has encoder.weight and decoder.bias"]
    return []


def read(path: Path, named: str = "") -> InferenceSae:
    """Return an SAE or a transcoder of Llama Scope: (x · √d_model / in) · W_enc + b_enc, then x̂ · out / √d_model.

    `in` and `out` are `dataset_average_activation_norm`; nothing is subtracted from the input. Where one number is the
    threshold of all latents, it is taken to be in the units of the raw OUTPUT (three published configs: 1.7 to 2.1 in
    those, a twentieth of that in the input's): `formats.variants` has the other readings, for what L0 says.
    R1 stores log θ per latent, in the units of the encoder.

    Raises:
        ConfigError: a file, a key, a tensor or the threshold is missing.
    """
    folder = path if path.is_dir() else path.parent
    is_first = (folder / _FIRST).is_file()
    where = folder / (_FIRST if is_first else _R1)
    config = stored_tensors.read_json(where)
    weights = folder / (_FIRST_WEIGHTS if is_first else _R1_WEIGHTS)
    found = stored_tensors.load(weights)
    stored_tensors.need(found, _TENSORS, weights)
    d_model = stored_tensors.whole_number(config, "d_model", where)
    n_latents = len(found["encoder.bias"])
    scales = _scales(config, where, d_model)
    hook, target = config.get("hook_point_in"), config.get("hook_point_out")
    layer, site = place(hook)
    selection, threshold, factor = _threshold(config, found, where, scales)
    facts = SaeFacts(
        selection=selection,
        d_model=d_model,
        n_latents=n_latents,
        normalize="fixed",
        subtracts_bias=False,
        dtype=stored_tensors.dtype_name(found["encoder.weight"]),
        k=stored_tensors.whole_number(config, "top_k", where) if selection == "topk" else None,
        subject=_SUBJECT,
        layers=() if layer is None else (layer,),
        site=site,
        hook_point=hook,
        target_hook_point=target if target not in {None, hook} else None,
        context_length=1024,
        prepend_bos=True,
    )
    tensors = {
        "W_enc": stored_tensors.oriented(found["encoder.weight"], n_latents, d_model).T,
        "b_enc": found["encoder.bias"],
        "W_dec": stored_tensors.oriented(found["decoder.weight"], d_model, n_latents).T,
        "b_dec": found["decoder.bias"],
    }
    return InferenceSae(facts, tensors | threshold, scales=scales._replace(threshold=factor))


def _scales(config: dict[str, Any], where: Path, d_model: int) -> Scales:
    norms = stored_tensors.value(config, "dataset_average_activation_norm", where)
    given, back = (stored_tensors.value(norms, side, where) for side in ("in", "out"))
    if not (given > 0 and back > 0):
        raise ConfigError(f"the norms {norms} in {where} are not above 0")
    return Scales(input=d_model**0.5 / given, output=back / d_model**0.5)


def _threshold(
    config: dict[str, Any], found: dict[str, Tensor], where: Path, scales: Scales
) -> tuple[Any, dict[str, Tensor], float]:
    """Return the selection, the threshold by its name, and what it was multiplied by."""
    kind = config.get("act_fn", "jumprelu")
    if kind == "topk":
        return "topk", {}, 1.0
    if kind != "jumprelu":
        raise ConfigError(f"act_fn {kind!r} of {where} is not known (known: jumprelu, topk)")
    if _LOG_THRESHOLD in found:
        return "jumprelu", {"threshold": found[_LOG_THRESHOLD].exp()}, 1.0
    theta = float(stored_tensors.value(config, "jump_relu_threshold", where))
    factor = 1 / scales.output
    return "batchtopk", {"threshold": torch.tensor(theta * factor, dtype=found["encoder.bias"].dtype)}, factor
