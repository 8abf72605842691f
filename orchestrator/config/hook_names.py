"""The places in a model, in the words of other programs and in ours."""

import re
from typing import NamedTuple

from orchestrator.config.sae_facts import SaeFacts
from orchestrator.config.sites import Site

_TRANSFORMER_LENS: dict[Site, str] = {
    "resid_post": "hook_resid_post",
    "resid_mid": "hook_resid_mid",
    "attn_delta": "hook_attn_out",
    "mlp_delta": "hook_mlp_out",
    "mlp_post": "mlp.hook_post",
}
_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers?|h|block)\.(\d+)(?:\.(.*))?$")
"""A block by its number, and what comes after it: of TransformerLens and of the models of transformers."""
_MODULES: dict[str, Site] = {
    "": "resid_post", "output": "resid_post",
    "attn": "attn_delta", "self_attn": "attn_delta", "attention": "attn_delta",
    "mlp": "mlp_delta",
    **{name: site for site, name in _TRANSFORMER_LENS.items()},
}  # fmt: skip


class Place(NamedTuple):
    """Where in a model; what a name does not say is None."""

    layer: int | None = None
    site: Site | None = None


def place(hook_point: str | None) -> Place:
    """Return the block and our site that a name of TransformerLens or of a module means, as far as it says.

    `hook_resid_pre` of a block is what the block before it gives; before the first there is none of our sites.
    """
    found = _BLOCK.search(hook_point or "")
    if found is None:
        return Place()
    layer, rest = int(found[1]), found[2] or ""
    if rest == "hook_resid_pre":
        return Place(layer - 1, "resid_post") if layer else Place()
    return Place(layer, _MODULES.get(rest))


def transformer_lens_name(facts: SaeFacts) -> str | None:
    """Return TransformerLens's name of an SAE's place; None: it has none there, or is not known."""
    sites = {str(site): name for site, name in _TRANSFORMER_LENS.items()}
    if facts.site not in sites or len(facts.layers) != 1:
        return None
    return f"blocks.{facts.layers[0]}.{sites[facts.site]}"
