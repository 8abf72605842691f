"""EleutherAI's sparsify: a folder of cfg.json and sae.safetensors. Source: eai-sparsify 1.3.3, `sparse_coder.py`."""

import json
from collections.abc import Callable
from pathlib import Path

from orchestrator.config.hook_names import place
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.errors import ConfigError
from worker import checked_folder
from worker.formats import fold, stored_tensors
from worker.formats.tensor_file import write_tensors
from worker.sae.inference import InferenceSae

_CONFIG, _WEIGHTS, _RUN = "cfg.json", "sae.safetensors", "config.json"
_TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


def reasons(path: Path) -> list[str]:
    """Return what speaks for sparsify."""
    weights = stored_tensors.find(path, _WEIGHTS)
    config = stored_tensors.json_or_nothing(stored_tensors.beside(path, _CONFIG))
    found = [f"{_CONFIG} has {key}" for key in ("num_latents", "expansion_factor") if key in config]
    if weights is not None and set(_TENSORS) <= stored_tensors.names(weights):
        found.append(f"{_WEIGHTS} has encoder.weight and W_dec")
    return found


def read(path: Path, named: str = "") -> InferenceSae:
    """Return the SAE, transcoder or skip transcoder of a folder that sparsify wrote.

    `num_latents` of 0 means d_in · expansion_factor: the tensors say how many. The model is in the config of the run,
    in the folder above; the hook point is the name of the folder.

    Raises:
        ConfigError: a file, a key or a tensor is missing or wrong, or the activation is not topk.
    """
    folder = path if path.is_dir() else path.parent
    where = folder / _CONFIG
    config = stored_tensors.read_json(where)
    if config.get("activation", "topk") != "topk":
        raise ConfigError(f"the activation {config['activation']!r} of {where} is not known (known: topk)")
    found = stored_tensors.load(folder / _WEIGHTS)
    stored_tensors.need(found, _TENSORS, folder / _WEIGHTS)
    d_model, n_latents = stored_tensors.whole_number(config, "d_in", where), len(found["encoder.bias"])
    expected = config.get("num_latents") or d_model * (config.get("expansion_factor") or 0)
    if expected and expected != n_latents:
        raise ConfigError(f"{where} speaks of {expected} latents, and {_WEIGHTS} has {n_latents}")
    run = stored_tensors.json_or_nothing(stored_tensors.find(folder.parent, _RUN))
    layer, site = place(folder.name)
    transcodes = bool(config.get("transcode", False))
    facts = SaeFacts(
        selection="topk",
        d_model=d_model,
        n_latents=n_latents,
        normalize="none",
        subtracts_bias=not transcodes,
        dtype=stored_tensors.dtype_name(found["W_dec"]),
        k=stored_tensors.whole_number(config, "k", where),
        subject=run.get("model"),
        revision=run.get("revision"),
        layers=() if layer is None else (layer,),
        site=site,
        hook_point=None if layer is None else folder.name,
        target_hook_point=f"{folder.name}, its output" if transcodes else None,
        context_length=run.get("ctx_len"),
    )
    tensors = {
        "W_enc": stored_tensors.oriented(found["encoder.weight"], n_latents, d_model).T,
        "b_enc": found["encoder.bias"],
        "W_dec": stored_tensors.oriented(found["W_dec"], n_latents, d_model),
        "b_dec": found["b_dec"],
    }
    return InferenceSae(facts, tensors | ({"W_skip": found["W_skip"]} if "W_skip" in found else {}))


def fill(sae: InferenceSae) -> Callable[[Path], None]:
    """Return what writes an SAE as sparsify does.

    Raises:
        ConfigError: it selects otherwise than topk, or normalises each vector, or a transcoder changes the width.
    """
    fold.refuse_rank(sae, "sparsify")
    sae = fold.without_input_scale(sae)
    facts = sae.facts
    if facts.selection != "topk":
        raise ConfigError(f"sparsify knows topk alone, and this SAE selects by {facts.selection}")
    if facts.normalize != "none":
        raise ConfigError(
            f"sparsify normalises nothing, and this SAE normalises each vector ({facts.normalize})",
            hint="Export it as SAELens, which does, or train one with sae.normalize: none.",
        )
    if len(sae.b_dec) != facts.d_model:
        raise ConfigError(f"sparsify has no transcoder from {facts.d_model} to {len(sae.b_dec)} dimensions")
    sae = fold.bias_subtracted(sae, not facts.is_transcoder)
    config = {
        "activation": "topk",
        "expansion_factor": max(1, facts.n_latents // facts.d_model),
        "normalize_decoder": not facts.is_transcoder,
        "num_latents": facts.n_latents,
        "k": facts.k,
        "multi_topk": False,
        "skip_connection": sae.W_skip is not None,
        "transcode": facts.is_transcoder,
        "d_in": facts.d_model,
    }
    tensors = {"encoder.weight": sae.W_enc.T, "encoder.bias": sae.b_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}

    def write(folder: Path) -> None:
        write_tensors(folder / _WEIGHTS, tensors | ({} if sae.W_skip is None else {"W_skip": sae.W_skip}))
        checked_folder.write_text(folder / _CONFIG, json.dumps(config, indent=2))

    return write
