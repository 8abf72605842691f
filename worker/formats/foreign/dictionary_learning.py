"""saprmarks/dictionary_learning: a folder of ae.pt and config.json. Source: its `dictionary.py` and `trainers/`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orchestrator.config.hook_names import place
from orchestrator.config.sae_facts import SaeFacts, Selection
from orchestrator.errors import ConfigError
from worker import checked_folder
from worker.formats import fold, stored_tensors
from worker.formats.tensor_file import write_pickle
from worker.sae.inference import InferenceSae

_WEIGHTS, _CONFIG = "ae.pt", "config.json"


class _DictClass(NamedTuple):
    """How a class of theirs names its tensors: ours -> theirs; `turned` are stored as ours transposed."""

    selection: Selection
    names: dict[str, str]
    turned: tuple[str, ...] = ()
    subtracts_bias: bool = True


_LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight"}
_MATRICES = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
_BOTH = ("W_enc", "W_dec")
_GATED = {
    "W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "decoder_bias",
    "b_enc": "gate_bias", "b_mag": "mag_bias", "r_mag": "r_mag",
}  # fmt: skip
_CLASSES: dict[str, _DictClass] = {
    "AutoEncoderTopK": _DictClass("topk", {**_LINEAR, "b_dec": "b_dec"}, _BOTH),
    "BatchTopKSAE": _DictClass("batchtopk", {**_LINEAR, "b_dec": "b_dec", "threshold": "threshold"}, _BOTH),
    "MatryoshkaBatchTopKSAE": _DictClass("batchtopk", {**_MATRICES, "threshold": "threshold"}),
    "JumpReluAutoEncoder": _DictClass("jumprelu", {**_MATRICES, "threshold": "threshold"}, subtracts_bias=False),
    "AutoEncoder": _DictClass("relu", {**_LINEAR, "b_dec": "bias"}, _BOTH),
    "AutoEncoderNew": _DictClass("relu", {**_LINEAR, "b_dec": "decoder.bias"}, _BOTH, subtracts_bias=False),
    "GatedAutoEncoder": _DictClass("gated", _GATED, _BOTH),
}
_WRITTEN: dict[Selection, str] = {
    "topk": "AutoEncoderTopK", "batchtopk": "BatchTopKSAE", "jumprelu": "JumpReluAutoEncoder",
    "relu": "AutoEncoder", "gated": "GatedAutoEncoder",
}  # fmt: skip
_SCALED_BIASES = ("b_enc", "b_mag", "b_dec", "threshold")
"""What their `scale_biases` multiplies when a training on normalised activations is done."""


def reasons(path: Path) -> list[str]:
    """Return what speaks for dictionary_learning."""
    config = stored_tensors.json_or_nothing(_config_file(path)).get("trainer")
    found = [f"{_CONFIG} has trainer.dict_class"] if isinstance(config, dict) and "dict_class" in config else []
    weights = _weights(path)
    return [*found, f"there is {weights.name}"] if found and weights is not None else []


def read(path: Path, named: str = "") -> InferenceSae:
    """Return the SAE of a folder that dictionary_learning wrote, by the class that its config names.

    A backup of a training that was not done (`backup_steps` puts it in the place of ae.pt) is known by its `ae`;
    its biases are those of activations divided by `norm_factor`, and are multiplied by it, as their trainer does.
    Latents of AutoEncoder are multiplied by the norms of the decoder's rows, as its own loader does.

    Raises:
        ConfigError: a file, a key or a tensor is missing or wrong, or a threshold was never set.
    """
    folder = path if path.is_dir() else path.parent
    config = stored_tensors.read_json(_config_file(path))
    trainer = stored_tensors.value(config, "trainer", folder / _CONFIG)
    name = stored_tensors.value(trainer, "dict_class", folder / _CONFIG)
    if name not in _CLASSES:
        raise ConfigError(f"the dict_class {name!r} of {folder / _CONFIG} is not known (known: {', '.join(_CLASSES)})")
    weights = _weights(path)
    if weights is None:
        raise ConfigError(f"there is no {_WEIGHTS} in {folder}")
    stored = stored_tensors.load(weights)
    norm_factor = float(stored.get("norm_factor") or 1.0)
    stored = stored["ae"] if isinstance(stored.get("ae"), dict) else stored
    kind = _CLASSES[name]
    stored_tensors.need(stored, kind.names.values(), weights)
    tensors = {ours: stored[theirs] for ours, theirs in kind.names.items()}
    n_latents, d_model = len(tensors["b_enc"]), len(tensors["b_dec"])
    for ours, rows, columns in (("W_enc", d_model, n_latents), ("W_dec", n_latents, d_model)):
        matrix = tensors[ours].T if ours in kind.turned else tensors[ours]
        tensors[ours] = stored_tensors.oriented(matrix, rows, columns)
    if norm_factor != 1.0:
        tensors |= {ours: tensors[ours] * norm_factor for ours in _SCALED_BIASES if ours in tensors}
    if kind.selection == "batchtopk":
        _check_threshold(stored["threshold"], weights)
    sae = InferenceSae(_facts(kind, tensors, config, stored), tensors)
    return sae.with_unit_rows() if name == "AutoEncoder" else sae


def fill(sae: InferenceSae) -> Callable[[Path], None]:
    """Return what writes an SAE as dictionary_learning does, with a config of what its loader reads.

    Raises:
        ConfigError: it normalises each vector, or is a transcoder.
    """
    fold.refuse_rank(sae, "dictionary_learning")
    sae = fold.without_input_scale(sae)
    facts = sae.facts
    if facts.normalize != "none":
        raise ConfigError(
            f"dictionary_learning normalises nothing, and this SAE normalises each vector ({facts.normalize})",
            hint="Export it as SAELens, which does, or train one with sae.normalize: none.",
        )
    if facts.is_transcoder or sae.W_skip is not None:
        raise ConfigError("dictionary_learning has no transcoders")
    name = _WRITTEN[facts.selection]
    kind = _CLASSES[name]
    sae = fold.bias_subtracted(sae, kind.subtracts_bias)
    tensors = {
        theirs: getattr(sae, ours).T if ours in kind.turned else getattr(sae, ours)
        for ours, theirs in kind.names.items()
    }
    if facts.selection in {"topk", "batchtopk"}:
        tensors["k"] = torch.tensor(facts.k or 1, dtype=torch.int)
        tensors.setdefault("threshold", torch.tensor(-1.0))
    config = {
        "trainer": {
            "dict_class": name,
            "activation_dim": facts.d_model,
            "dict_size": facts.n_latents,
            "k": facts.k,
            "layer": facts.layers[0] if facts.layers else None,
            "lm_name": facts.subject,
            "submodule_name": facts.hook_point,
        },
        "buffer": {"d_submodule": facts.d_model, "io": "out", "ctx_len": facts.context_length},
        "exported_by": "orch",
    }

    def write(folder: Path) -> None:
        write_pickle(folder / _WEIGHTS, tensors)
        checked_folder.write_text(folder / _CONFIG, json.dumps(config, indent=2))

    return write


def _weights(path: Path) -> Path | None:
    return path if path.is_file() and path.suffix == ".pt" else stored_tensors.find(path, _WEIGHTS)


def _config_file(path: Path) -> Path:
    """Return config.json beside the weights, or above `checkpoints/ae_<step>.pt`."""
    folder = path if path.is_dir() else path.parent
    return next((f / _CONFIG for f in (folder, folder.parent) if (f / _CONFIG).is_file()), folder / _CONFIG)


def _check_threshold(threshold: Tensor, weights: Path) -> None:
    if float(threshold) == -1.0:
        raise ConfigError(
            f"the threshold in {weights} was never set (it is -1): every positive latent would count as active",
            hint="dictionary_learning sets it after 1,000 steps (threshold_start_step): train it longer.",
        )


def _facts(kind: _DictClass, tensors: dict[str, Tensor], config: dict[str, Any], stored: dict[str, Any]) -> SaeFacts:
    trainer, buffer = config["trainer"], config.get("buffer") or {}
    k = stored.get("k", trainer.get("k"))
    if kind.selection == "topk" and k is None:
        raise ConfigError("neither ae.pt nor config.json says k")
    layer = trainer.get("layer")
    submodule = trainer.get("submodule_name")
    return SaeFacts(
        selection=kind.selection,
        d_model=len(tensors["b_dec"]),
        n_latents=len(tensors["b_enc"]),
        normalize="none",
        subtracts_bias=kind.subtracts_bias,
        dtype=stored_tensors.dtype_name(tensors["W_enc"]),
        k=None if k is None else int(k),
        subject=trainer.get("lm_name"),
        layers=() if layer is None else (int(layer),),
        site=place(submodule).site,
        hook_point=submodule,
        context_length=buffer.get("ctx_len"),
    )
