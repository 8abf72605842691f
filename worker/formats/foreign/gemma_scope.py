"""Gemma Scope (params.npz) and Gemma Scope 2 (params.safetensors): JumpReLU SAEs and transcoders of Gemma."""

import re
from pathlib import Path

from torch import Tensor

from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.sites import Site
from orchestrator.errors import ConfigError
from worker.formats import stored_tensors
from worker.sae.inference import InferenceSae

_FILES = ("params.npz", "params.safetensors")
_CONFIG = "config.json"
_SKIP = "affine_skip_connection"
_LAYER = re.compile(r"layer_(\d+)")
_L0 = re.compile(r"average_l0_(\d+(?:\.\d+)?)")
_FIRST = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)")
_SECOND = re.compile(r"gemma-scope-2-(\d+[bm])-(pt|it)")
_INPUT_OF_O_PROJ = "the input of o_proj"


def reasons(path: Path) -> list[str]:
    """Return what speaks for Gemma Scope."""
    file = _file(path)
    names = {name.lower() for name in stored_tensors.names(file)} if file else set()
    if file is None or not {"w_enc", "w_dec", "b_enc", "b_dec"} <= names:
        return []
    return [f"there is {file.name}", "its tensors are w_enc, w_dec, b_enc and b_dec"]


def read(path: Path, named: str = "") -> InferenceSae:
    """Return an SAE or a transcoder of Gemma Scope; nothing is subtracted from its input.

    Model, layer, site and L0 are those of the names of repository and folders, in `named` or the path, and of
    config.json where there is one. `attn_out` of Gemma Scope 2 and `att` of the first read the INPUT of o_proj.
    A skip connection is stored as (input, output), and turned.

    Raises:
        ConfigError: a tensor is missing (the threshold, too) or has another shape.
    """
    file = _file(path)
    if file is None:
        raise ConfigError(f"there is no {' or '.join(_FILES)} in {path}")
    stored = stored_tensors.load(file)
    found: dict[str, Tensor] = {name.lower(): tensor for name, tensor in stored.items()}
    stored_tensors.need(found, ["w_enc", "w_dec", "b_enc", "b_dec", "threshold"], file)
    if found["w_dec"].dim() == 3:
        raise ConfigError(f"{file} decodes into several layers (a cross-layer transcoder): not known here")
    text = f"{named}/{file.absolute()}".replace("--", "/")
    config = stored_tensors.json_or_nothing(stored_tensors.find(file.parent, _CONFIG))
    n_latents = len(found["b_enc"])
    d_model = next((size for size in found["w_enc"].shape if size != n_latents), n_latents)
    site, hook, target = _place(text, config)
    layer = _LAYER.search(text)
    l0 = _L0.search(text)
    facts = SaeFacts(
        selection="jumprelu",
        d_model=d_model,
        n_latents=n_latents,
        normalize="none",
        subtracts_bias=False,
        dtype=stored_tensors.dtype_name(found["w_enc"]),
        subject=_subject(text, config),
        layers=(int(layer[1]),) if layer else (),
        site=site,
        hook_point=hook,
        target_hook_point=target or ("not said" if _SKIP in found else None),
        context_length=1024,
        prepend_bos=True,
        stated_l0=float(l0[1]) if l0 else None,
    )
    tensors = {
        "W_enc": stored_tensors.oriented(found["w_enc"], d_model, n_latents),
        "b_enc": found["b_enc"],
        "W_dec": stored_tensors.oriented(found["w_dec"], n_latents, len(found["b_dec"])),
        "b_dec": found["b_dec"],
        "threshold": found["threshold"],
    }
    return InferenceSae(facts, tensors | ({"W_skip": found[_SKIP].T} if _SKIP in found else {}))


def _file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix in {".npz", ".safetensors"} and path.name.startswith("params") else None
    return stored_tensors.find(path, *_FILES)


def _subject(text: str, config: dict[str, object]) -> str | None:
    if second := _SECOND.search(text):
        size, kind = second.groups()
        return f"google/gemma-3-{size}" + ("" if (size, kind) == ("270m", "pt") else f"-{kind}")
    if first := _FIRST.search(text):
        return f"google/gemma-2-{first[1]}" + ("-it" if first[2] == "it" else "")
    return str(config["model_name"]) if "model_name" in config else None


def _place(text: str, config: dict[str, object]) -> tuple[Site | None, str | None, str | None]:
    """Return site, hook point and, of a transcoder, its target."""
    given, target = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    hook = str(given) if given else None
    first = _FIRST.search(text)
    if "transcoder" in text:
        return None, hook or "the MLP's input, normalised", str(target or "the MLP's output, normalised")
    if "embedding" in text:
        return None, hook or "the token embedding", None
    if "attn_out" in text or (first and first[3] == "att"):
        return None, hook or _INPUT_OF_O_PROJ, None
    if "resid_post" in text or (first and first[3] == "res"):
        return "resid_post", hook, None
    if "mlp_out" in text or (first and first[3] == "mlp"):
        return "mlp_delta", hook, None
    return None, hook, None
