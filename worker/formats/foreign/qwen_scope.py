"""Qwen Scope: one `layer<N>.sae.pt` per layer, with the sizes in the repository's name."""

import re
from pathlib import Path

from orchestrator.config.sae_facts import SaeFacts
from orchestrator.errors import ConfigError
from worker.formats import stored_tensors
from worker.sae.inference import InferenceSae

_FILE = re.compile(r"^layer(\d+)\.sae\.pt$")
_NAME = re.compile(r"SAE-Res-(?P<model>.+?)-W(?P<width>\d+)K-L0_(?P<k>\d+)")
_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def reasons(path: Path) -> list[str]:
    """Return what speaks for Qwen Scope."""
    file = stored_tensors.only_match(path, _FILE)
    if file is None or not set(_TENSORS) <= stored_tensors.names(file):
        return []
    return [f"the file is called {file.name}", f"its tensors are {', '.join(_TENSORS)}"]


def read(path: Path, named: str = "") -> InferenceSae:
    """Return a TopK SAE of Qwen Scope; nothing is subtracted from its input. k is in the repository's name alone.

    Raises:
        ConfigError: several layers and none named, a tensor is missing, or the name that says k.
    """
    file = stored_tensors.only_match(path, _FILE)
    if file is None:
        raise ConfigError(f"{path} has no layer<N>.sae.pt, or several: name one")
    text = f"{named}/{file.absolute()}"
    name = _NAME.search(text)
    if name is None:
        raise ConfigError(
            f"{file} does not say k: it is in the name of its repository, SAE-Res-<model>-W<width>K-L0_<k>",
            hint="Keep it in a folder of that name.",
        )
    found = stored_tensors.load(file)
    stored_tensors.need(found, _TENSORS, file)
    n_latents, d_model = len(found["b_enc"]), len(found["b_dec"])
    layer = _FILE.match(file.name)
    number = int(layer[1]) if layer else 0
    facts = SaeFacts(
        selection="topk",
        d_model=d_model,
        n_latents=n_latents,
        normalize="none",
        subtracts_bias=False,
        dtype=stored_tensors.dtype_name(found["W_enc"]),
        k=int(name["k"]),
        subject=f"Qwen/{name['model']}",
        layers=(number,),
        site="resid_post",
        hook_point=f"model.layers.{number}",
        stated_l0=float(name["k"]),
    )
    tensors = {
        "W_enc": stored_tensors.oriented(found["W_enc"], n_latents, d_model).T,
        "b_enc": found["b_enc"],
        "W_dec": stored_tensors.oriented(found["W_dec"], d_model, n_latents).T,
        "b_dec": found["b_dec"],
    }
    return InferenceSae(facts, tensors)
