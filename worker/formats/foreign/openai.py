"""OpenAI's sparse_autoencoder: one .pt file, the state of its `Autoencoder`. Source: its `model.py`, `paths.py`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from orchestrator.config.sae_facts import SaeFacts, Selection
from orchestrator.errors import ConfigError
from worker.formats import fold, stored_tensors
from worker.formats.tensor_file import write_pickle
from worker.sae.inference import InferenceSae, Scales

_WEIGHTS = "autoencoder.pt"
_FILE = re.compile(r".*\.pt$")
"""Theirs are named after the layer."""
_TENSORS = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "b_dec": "pre_bias"}
_DECODERS = ("decoder.weight", "decoder.linear.weight")
_SELECTIONS: dict[str, Selection] = {"TopK": "topk", "ReLU": "relu"}


def reasons(path: Path) -> list[str]:
    """Return what speaks for OpenAI's format."""
    file = stored_tensors.only_match(path, _FILE)
    names = stored_tensors.names(file) if file else frozenset()
    return [f"{file.name} has pre_bias and latent_bias"] if file and {"pre_bias", "latent_bias"} <= names else []


def read(path: Path, named: str = "") -> InferenceSae:
    """Return the SAE of a file of OpenAI's.

    The normalisation is not stored: as in their loader, TopK reads vectors of standard deviation 1, and ReLU reads them
    as they are.

    Raises:
        ConfigError: the file lacks a tensor or its activation, or that is not known.
    """
    file = stored_tensors.only_match(path, _FILE)
    if file is None:
        raise ConfigError(f"{path} has no .pt file, or several: name one")
    stored = stored_tensors.load(file)
    decoder = next((name for name in _DECODERS if name in stored), _DECODERS[0])
    stored_tensors.need(stored, [*_TENSORS.values(), decoder], file)
    activation = stored_tensors.value(stored, "activation", file)
    if activation not in _SELECTIONS:
        raise ConfigError(f"the activation {activation!r} of {file} is not known (known: {', '.join(_SELECTIONS)})")
    n_latents, d_model = len(stored["latent_bias"]), len(stored["pre_bias"])
    selection = _SELECTIONS[activation]
    facts = SaeFacts(
        selection=selection,
        d_model=d_model,
        n_latents=n_latents,
        normalize="layer_norm" if selection == "topk" else "none",
        subtracts_bias=True,
        dtype=stored_tensors.dtype_name(stored["encoder.weight"]),
        k=_k(stored, file) if selection == "topk" else None,
    )
    tensors = {ours: stored[theirs] for ours, theirs in _TENSORS.items()}
    tensors["W_enc"] = stored_tensors.oriented(tensors["W_enc"], n_latents, d_model).T
    tensors["W_dec"] = stored_tensors.oriented(stored[decoder], d_model, n_latents).T
    return InferenceSae(facts, tensors, scales=Scales(undoes_eps=False))


def fill(sae: InferenceSae) -> Callable[[Path], None]:
    """Return what writes an SAE as OpenAI's `Autoencoder.state_dict()` is.

    Raises:
        ConfigError: it is neither topk of normalised vectors nor relu of vectors as they are.
    """
    fold.refuse_rank(sae, "OpenAI's format")
    sae = fold.unit_as_layer_norm(fold.without_input_scale(sae))
    facts = sae.facts
    activation = {ours: theirs for theirs, ours in _SELECTIONS.items()}.get(facts.selection)
    if activation is None or facts.is_transcoder or sae.W_skip is not None:
        kind = "transcoders" if activation else facts.selection
        raise ConfigError(f"OpenAI's format has no {kind}: it knows topk and relu")
    wanted = "layer_norm" if facts.selection == "topk" else "none"
    if facts.normalize != wanted:
        raise ConfigError(
            f"OpenAI's format stores no normalisation: its loader takes {wanted} with {facts.selection}, and this SAE "
            f"has {facts.normalize}",
            hint="Export it as SAELens, which stores it.",
        )
    sae = fold.bias_subtracted(sae, True)
    state: dict[str, Any] = {
        "pre_bias": sae.b_dec,
        "encoder.weight": sae.W_enc.T,
        "latent_bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T,
        "stats_last_nonzero": torch.zeros(facts.n_latents, dtype=torch.long),
        "latents_activation_frequency": torch.ones(facts.n_latents),
        "latents_mean_square": torch.zeros(facts.n_latents),
        "activation": activation,
        "activation_state_dict": {"k": facts.k, "postact_fn": "ReLU"} if facts.selection == "topk" else {},
    }
    return lambda folder: write_pickle(folder / _WEIGHTS, state)


def _k(stored: dict[str, Any], file: Path) -> int:
    state = stored_tensors.value(stored, "activation_state_dict", file)
    if state.get("postact_fn", "ReLU") != "ReLU":
        raise ConfigError(f"{file} applies {state['postact_fn']!r} to the k largest latents; ReLU alone is known")
    return stored_tensors.whole_number(state, "k", file)
