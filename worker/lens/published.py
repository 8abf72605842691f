"""Lens files of the tuned-lens library: a folder of config.json and params.pt. Source: its `nn/lenses.py`.

Translator i is of the INPUT of block i, so that of the output of block l is translator l + 1, and the output of the
last block has none. Translator 0 is of the embeddings, which no SAE here reads: it is left out.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.config.job import SubjectConfig
from orchestrator.config.lens.facts import LensFacts
from orchestrator.errors import ConfigError
from orchestrator.formatting import named
from worker.formats import stored_tensors
from worker.lens.tuned_lens import TunedLens
from worker.subject.model_files import describe, fingerprint, locate

_CONFIG, _PARAMETERS = "config.json", "params.pt"
_TRANSLATOR = re.compile(r"(?:layer_translators\.)?(\d+)\.(weight|bias)")
"""Files before 0.1 kept the whole module, its unembedding with it: of those the translators have a prefix."""
_DTYPES = {"float32", "float16", "bfloat16"}


def read_published(folder: Path, subject: SubjectConfig) -> TunedLens:
    """Return the lens of a folder that the tuned-lens library wrote, for a model whose files are at hand.

    `subject`: model and revision; the rest of it is not read. Only tensors are taken from the pickle.

    Raises:
        ConfigError: a file or a translator is missing or has another shape, holds what is not finite, is singular, or
            is of another model or revision.
        SubjectError, MachineError: there is no such model here.
    """
    config = stored_tensors.read_json(folder / _CONFIG)
    _check_stated(config, subject, folder / _CONFIG)
    tensors = stored_tensors.load(folder / _PARAMETERS)
    translators = _translators(tensors, folder / _PARAMETERS)
    facts = _facts(subject, dtype=stored_tensors.dtype_name(translators[0]["weight"]))
    _check_sizes(config, translators, facts, folder)
    weights = torch.zeros(facts.n_layers, facts.d_model, facts.d_model)
    biases = torch.zeros(facts.n_layers, facts.d_model)
    for layer in range(facts.n_layers - 1):
        translator = translators[layer + 1]
        weights[layer] = translator["weight"]
        biases[layer] = translator.get("bias", biases[layer])
    lens = TunedLens(weights=weights, biases=biases, facts=facts)
    lens.check_invertible()
    return lens


def _facts(subject: SubjectConfig, *, dtype: str) -> LensFacts:
    """Return what a lens says of a model whose files are at hand."""
    folder = locate(subject)
    described = describe(folder, subject).get_text_config()
    return LensFacts(
        model=subject.model,
        revision=subject.revision,
        fingerprint=fingerprint(folder),
        dtype=dtype if dtype in _DTYPES else "float32",
        n_layers=int(described.num_hidden_layers),
        d_model=int(described.hidden_size),
    )


def _check_stated(config: dict[str, Any], subject: SubjectConfig, where: Path) -> None:
    """Refuse a lens whose config names another kind of lens, another model or another revision."""
    kind = config.get("lens_type", "linear_tuned_lens")
    if kind != "linear_tuned_lens":
        raise ConfigError(f"{where} says lens_type {kind!r}, and only affine lenses are read (linear_tuned_lens)")
    stated = config.get("base_model_name_or_path")
    if stated and _last_part(str(stated)) != _last_part(subject.model):
        raise ConfigError(
            f"the lens is of {stated}, and the subject is {subject.model}",
            hint=f"--subject names the model the lens is of. If these are the same weights, say so in {where}: "
            "base_model_name_or_path.",
        )
    revision = config.get("base_model_revision") or "main"
    if revision != (subject.revision or "main"):
        raise ConfigError(
            f"the lens is of revision {revision} of its model, and the subject is read at {subject.revision or 'main'}",
            hint=f"--revision {revision}",
        )


def _last_part(name: str) -> str:
    """Return the name of a model without its owner or the folders it is in, in small letters."""
    return Path(name).name.lower()


def _translators(tensors: dict[str, Any], where: Path) -> dict[int, dict[str, Tensor]]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        matched = _TRANSLATOR.fullmatch(name)
        if matched and isinstance(value, Tensor):
            found.setdefault(int(matched[1]), {})[matched[2]] = value
    missing = [number for number in range(max(found, default=0) + 1) if "weight" not in found.get(number, {})]
    if missing:
        there = ", ".join(sorted(map(str, tensors))[:8]) or "nothing"
        raise ConfigError(f"{where} lacks the translator {missing[0]}.weight; there is: {there}")
    return found


def _check_sizes(
    config: dict[str, Any], translators: dict[int, dict[str, Tensor]], facts: LensFacts, folder: Path
) -> None:
    """Refuse a lens of another depth or width than the model's, by its config or by its tensors."""
    stated = {name: config.get(name) for name in ("num_hidden_layers", "d_model")}
    depth, width = stated["num_hidden_layers"] or len(translators), stated["d_model"] or facts.d_model
    if (depth, width) != (facts.n_layers, facts.d_model) or len(translators) != facts.n_layers:
        raise ConfigError(
            f"the lens has {named(len(translators), 'translator')}, for {depth} blocks of width {width}, and "
            f"{facts.model} has {facts.n_layers} blocks of width {facts.d_model}",
            hint="The lens is of another model.",
        )
    for number, translator in translators.items():
        for name, tensor in translator.items():
            shape = (facts.d_model,) * (2 if name == "weight" else 1)
            if tuple(tensor.shape) != shape or not tensor.is_floating_point():
                raise ConfigError(
                    f"{number}.{name} in {folder / _PARAMETERS} is {tuple(tensor.shape)} of "
                    f"{stored_tensors.dtype_name(tensor)}, and should be floats of {shape}"
                )
