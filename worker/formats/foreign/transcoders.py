"""Transcoders as one file per layer, `layer_<N>.safetensors`, beside config.yaml: those of circuit-tracer."""

import re
from pathlib import Path
from typing import Any

import yaml

from orchestrator.bounded_file import read_text, why_unread
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.errors import ConfigError
from worker.formats import stored_tensors
from worker.sae.inference import InferenceSae

_FILE = re.compile(r"^layer_(\d+)\.safetensors$")
_CONFIG = "config.yaml"
_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def reasons(path: Path) -> list[str]:
    """Return what speaks for such a transcoder."""
    file = stored_tensors.only_match(path, _FILE)
    if file is None or not set(_TENSORS) <= stored_tensors.names(file):
        return []
    return [f"the file is called {file.name}", f"its tensors are {', '.join(_TENSORS)}"]


def read(path: Path, named: str = "") -> InferenceSae:
    """Return a ReLU transcoder from the input of a block's MLP to its output; both matrices are (n_latents, d).

    Raises:
        ConfigError: several layers and none named, or a tensor is missing or has another shape.
    """
    file = stored_tensors.only_match(path, _FILE)
    if file is None:
        raise ConfigError(f"{path} has no layer_<N>.safetensors, or several: name one")
    found = stored_tensors.load(file)
    stored_tensors.need(found, _TENSORS, file)
    config = _config(file.parent / _CONFIG)
    n_latents = len(found["b_enc"])
    d_model = next((size for size in found["W_enc"].shape if size != n_latents), n_latents)
    layer = _FILE.match(file.name)
    number = int(layer[1]) if layer else 0
    facts = SaeFacts(
        selection="relu",
        d_model=d_model,
        n_latents=n_latents,
        normalize="none",
        subtracts_bias=False,
        dtype=stored_tensors.dtype_name(found["W_enc"]),
        subject=config.get("model_name"),
        layers=(number,),
        hook_point=str(config.get("feature_input_hook", "mlp.hook_in")),
        target_hook_point=str(config.get("feature_output_hook", "hook_mlp_out")),
    )
    tensors = {
        "W_enc": stored_tensors.oriented(found["W_enc"], n_latents, d_model).T,
        "b_enc": found["b_enc"],
        "W_dec": stored_tensors.oriented(found["W_dec"], n_latents, len(found["b_dec"])),
        "b_dec": found["b_dec"],
    }
    return InferenceSae(facts, tensors | ({"W_skip": found["W_skip"]} if "W_skip" in found else {}))


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = yaml.safe_load(read_text(path, what="a config"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML ({why_unread(error)})") from error
    return data if isinstance(data, dict) else {}
