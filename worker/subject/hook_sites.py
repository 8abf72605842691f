"""How each hook site is found in a transformer block, and how a real forward pass checks that it was the right place.

What is known of a site without a model is in `orchestrator.config.sites`; a new site is a row in each of the two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from orchestrator.config.sites import Site
from orchestrator.errors import ConfigError

End = Literal["output", "input", "sum"]
ATTENTION = ("attn", "self_attn", "attention", "self_attention")
"""Names that architectures give to the attention of a block."""
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2")
# A norm between a branch and the residual stream gives what is added (Gemma 2 and 3, OLMo 2, GLM 4).
_POST_MLP_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")
_POST_ATTENTION_NORMS = {
    "post_feedforward_layernorm": "post_attention_layernorm",
    "post_mlp_layernorm": "post_self_attn_layernorm",
}
"""By the norm behind the MLP: in a block that has none, `post_attention_layernorm` precedes the MLP (Llama)."""


@dataclass(frozen=True)
class HookPoint:
    """One module of one model, and what is read there."""

    name: str
    """Module, by its name in the model."""
    end: End = "output"
    """What of it is read: its output, its input, or its output added to the input of `block`."""
    layer: int | None = None
    """Block, counted from 0; None for a module given by name."""
    site: Site | None = None
    """What is read at that block; None for a module given by name."""
    block: str = ""
    """Name of that block's module."""

    def __str__(self) -> str:
        """Name the hook point as a person would."""
        return f"{self.site} of {self.block}" if self.site else self.name


class Equality(NamedTuple):
    """What a forward pass must find if a site is what its name says: left − minus = right."""

    left: HookPoint
    right: HookPoint
    minus: HookPoint | None = None


class SiteRule(NamedTuple):
    """How a site is found in a block."""

    end: End
    find: Callable[[nn.Module, str], str]
    """Takes the model and the block's name; returns the name of the module that is read.

    Raises:
        ConfigError: the block has no such part.
    """
    equality: Callable[[nn.Module, str], Equality] | None
    """Takes the same; returns what to check. None: the block's own output, which needs no check."""


def hook_point_at(model: nn.Module, block: str, *, layer: int, site: Site) -> HookPoint:
    """Return the hook point of a site at a block.

    Raises:
        ConfigError: the block has no such part; says what to use instead.
    """
    rule = SITE_RULES[site]
    return HookPoint(rule.find(model, block), rule.end, layer, site, block)


def child_named(block: nn.Module, names: tuple[str, ...]) -> str | None:
    """Return the first of some names that a child of a module has."""
    children = dict(block.named_children())
    return next((name for name in names if name in children), None)


def _block(_model: nn.Module, block: str) -> str:
    return block


def _attention(model: nn.Module, block: str) -> str:
    """Return the module whose output attention adds to the residual stream: a norm behind it, or attention itself."""
    children = dict(model.get_submodule(block).named_children())
    for post_mlp, post_attention in _POST_ATTENTION_NORMS.items():
        if post_mlp in children and post_attention in children:
            return f"{block}.{post_attention}"
    return _part(model, block, ATTENTION)


def _mlp(model: nn.Module, block: str) -> str:
    """Return the module whose output the MLP adds to the residual stream: a norm behind it, or the MLP itself."""
    norm = child_named(model.get_submodule(block), _POST_MLP_NORMS)
    return f"{block}.{norm}" if norm else _part(model, block, _MLP)


def _last_linear(model: nn.Module, block: str) -> str:
    """Return the last linear map of the MLP."""
    mlp = _part(model, block, _MLP)
    # Conv1D is GPT-2's linear map; both hold one weight matrix.
    found = [
        f"{mlp}.{name}".rstrip(".")
        for name, module in model.get_submodule(mlp).named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    if not found:
        raise ConfigError(f"{mlp} has no linear map to read before", hint="Name a module with subject.hook.")
    return found[-1]


def _block_adds_up(model: nn.Module, block: str) -> Equality:
    """Output of the block − the stream between its branches = what the MLP adds."""
    middle = HookPoint(_attention(model, block), "sum", block=block)
    return Equality(left=HookPoint(block), minus=middle, right=HookPoint(_mlp(model, block)))


def _mlp_ends_with_last_linear(model: nn.Module, block: str) -> Equality:
    """Output of the MLP = output of its last linear map."""
    return Equality(HookPoint(_part(model, block, _MLP)), HookPoint(_last_linear(model, block)))


def _part(model: nn.Module, block: str, names: tuple[str, ...]) -> str:
    part = child_named(model.get_submodule(block), names)
    if part is None:
        raise ConfigError(
            f"{block} of {type(model).__name__} has none of {', '.join(names)}",
            hint="Use subject.site: resid_post, or name a module with subject.hook.",
        )
    return f"{block}.{part}"


SITE_RULES: dict[Site, SiteRule] = {
    "resid_post": SiteRule("output", _block, equality=None),
    "resid_mid": SiteRule("sum", _attention, equality=_block_adds_up),
    "attn_delta": SiteRule("output", _attention, equality=_block_adds_up),
    "mlp_delta": SiteRule("output", _mlp, equality=_block_adds_up),
    "mlp_post": SiteRule("input", _last_linear, equality=_mlp_ends_with_last_linear),
}
