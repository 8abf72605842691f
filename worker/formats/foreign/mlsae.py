"""tim-lawson/mlsae: a folder of config.json and model.safetensors. Source: its `model/autoencoder.py`."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch

from orchestrator.config.sae_facts import SaeFacts
from orchestrator.errors import ConfigError
from worker import checked_folder
from worker.formats import fold, stored_tensors
from worker.formats.tensor_file import write_tensors
from worker.sae.inference import InferenceSae, Scales

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_TENSORS = {"W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_dec": "pre_encoder_bias"}
_WITH_MODEL = "autoencoder."
"""What the names begin with where the whole transformer is in the file, too (`-tfm`)."""
_NAME = re.compile(r"(?:ml)?sae-(?P<model>.+?)-x\d+-k\d+(?:-layers-(?P<layer>\d+))?(?:-|/|\s|$)")
_DEPTHS = {
    "pythia-14m": 6, "pythia-31m": 6, "pythia-70m": 6, "pythia-160m": 12, "pythia-410m": 24, "pythia-1b": 16,
    "pythia-1.4b": 24, "pythia-2.8b": 32, "pythia-6.9b": 32, "pythia-12b": 36, "gpt2": 12,
}  # fmt: skip
_LENS = re.compile(r"(?:ml)?sae-.+?-x\d+-k\d+(?:-[\w-]*?)?-lens(?:-|/|\s|$)")
"""Names of SAEs in the space of a tuned lens; their files do not say so, but where the transformer is in them, too."""
_OWNERS = {"pythia": "EleutherAI", "gpt2": "openai-community"}


def reasons(path: Path) -> list[str]:
    """Return what speaks for mlsae."""
    config = stored_tensors.json_or_nothing(stored_tensors.beside(path, _CONFIG))
    found = [f"{_CONFIG} has {key}" for key in ("n_inputs", "n_latents") if key in config]
    weights = stored_tensors.find(path, _WEIGHTS)
    if weights and {"pre_encoder_bias", _WITH_MODEL + "pre_encoder_bias"} & stored_tensors.names(weights):
        found.append(f"{_WEIGHTS} has pre_encoder_bias")
    return found if len(found) == 3 else []


def read(path: Path, named: str = "") -> InferenceSae:
    """Return the SAE of a folder that mlsae wrote; of one with the transformer the SAE's tensors alone are read.

    The model and the layers, where `config.json` does not name them as `fill` does, are taken from the name of the
    repository, in `named` or the path.

    Raises:
        ConfigError: a file, a key or a tensor is missing or wrong.
    """
    folder = path if path.is_dir() else path.parent
    where, weights = folder / _CONFIG, folder / _WEIGHTS
    config = stored_tensors.read_json(where)
    if config.get("tuned_lens") or _LENS.search(f"{named} {folder.absolute()}"):
        raise ConfigError(
            f"{named or folder} was trained in the space of a tuned lens, where mlsae gives the output of each block "
            "the translator of its input: no lens here gives the vectors that it reads",
            hint="Take the SAE of the same name without -lens, or train one with sae.lens.",
        )
    prefix = _WITH_MODEL if _WITH_MODEL + "encoder.weight" in stored_tensors.names(weights) else ""
    found = stored_tensors.load(weights, {prefix + name for name in _TENSORS.values()})
    stored_tensors.need(found, [prefix + name for name in _TENSORS.values()], weights)
    d_model = stored_tensors.whole_number(config, "n_inputs", where)
    n_latents = stored_tensors.whole_number(config, "n_latents", where)
    tensors = {ours: found[prefix + theirs] for ours, theirs in _TENSORS.items()}
    tensors["W_enc"] = stored_tensors.oriented(tensors["W_enc"], n_latents, d_model).T
    tensors["W_dec"] = stored_tensors.oriented(tensors["W_dec"], d_model, n_latents).T
    tensors["b_enc"] = torch.zeros(n_latents, dtype=tensors["W_enc"].dtype)
    subject, layers = _model_and_layers(f"{named} {folder.absolute()}")
    if isinstance(config.get("layers"), list):
        subject, layers = config.get("model_name"), tuple(map(int, config["layers"]))
    facts = SaeFacts(
        selection="topk",
        d_model=d_model,
        n_latents=n_latents,
        normalize="layer_norm" if config.get("standardize", True) else "none",
        subtracts_bias=True,
        dtype=stored_tensors.dtype_name(tensors["W_enc"]),
        k=stored_tensors.whole_number(config, "k", where),
        subject=subject,
        layers=layers,
        site="resid_post",
    )
    return InferenceSae(facts, tensors, scales=Scales(undoes_eps=False))


def fill(sae: InferenceSae) -> Callable[[Path], None]:
    """Return what writes an SAE as mlsae does.

    Raises:
        ConfigError: it selects otherwise than topk, or it has a bias of its latents, which mlsae has not, and reads
            vectors that are not standardised.
    """
    fold.refuse_rank(sae, "mlsae")
    sae = fold.unit_as_layer_norm(fold.without_input_scale(sae))
    facts = sae.facts
    if facts.selection != "topk" or facts.is_transcoder or sae.W_skip is not None:
        kind = "transcoders" if facts.is_transcoder else f"SAEs that select by {facts.selection}"
        raise ConfigError(f"mlsae has no {kind}: it knows topk alone")
    if facts.normalize not in {"none", "layer_norm"}:
        raise ConfigError(f"mlsae standardises vectors or takes them as they are, and this SAE has {facts.normalize}")
    sae = fold.bias_subtracted(sae, True)
    if bool((sae.b_enc != 0).any()):
        if facts.normalize != "layer_norm":
            raise ConfigError(
                "mlsae has no bias of the latents, and this SAE has one that is not zero: it goes into the weights of "
                "an encoder of standardised vectors alone",
                hint="Export it as SAELens.",
            )
        sae = fold.without_latent_bias(sae)
    config = {
        "n_inputs": facts.d_model,
        "n_latents": facts.n_latents,
        "k": facts.k,
        "dead_steps_threshold": 0,
        "dead_threshold": 1e-3,
        "auxk": 256,
        "standardize": facts.normalize == "layer_norm",
        **({"model_name": facts.subject, "layers": [*facts.layers]} if facts.layers else {}),
    }
    tensors = {"encoder.weight": sae.W_enc.T, "decoder.weight": sae.W_dec.T, "pre_encoder_bias": sae.b_dec}

    def write(folder: Path) -> None:
        write_tensors(folder / _WEIGHTS, tensors)
        checked_folder.write_text(folder / _CONFIG, json.dumps(config, indent=2))

    return write


def _model_and_layers(text: str) -> tuple[str | None, tuple[int, ...]]:
    """Return what a repository's name says: mlsae-<model>-x<R>-k<k> reads all layers, sae-…-layers-<i> one."""
    found = _NAME.search(text)
    if found is None:
        return None, ()
    model = found["model"]
    subject = next((f"{owner}/{model}" for family, owner in _OWNERS.items() if model.startswith(family)), model)
    if found["layer"] is not None:
        return subject, (int(found["layer"]),)
    return subject, tuple(range(_DEPTHS.get(model.removesuffix("-deduped"), 0)))
