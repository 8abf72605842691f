"""Hook points: where in a language model activations are read, and how to read or replace them there."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from orchestrator.config.job import Site, SubjectConfig
from orchestrator.errors import ConfigError, SubjectError

ATTENTION = ("attn", "self_attn", "attention", "self_attention")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "fc2")
# A norm between a branch and the residual stream gives what is added (Gemma 2 and 3, OLMo 2, GLM 4).
POST_ATTENTION = {
    "post_feedforward_layernorm": "post_attention_layernorm",
    "post_mlp_layernorm": "post_self_attn_layernorm",
}
POST_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")

See = Callable[[Tensor], Tensor | None]
"""Takes what a hook point gives; returns its replacement, or None to leave it."""


@dataclass(frozen=True)
class HookPoint:
    """One place in one model."""

    name: str
    """Module, by its name in the model."""
    end: Literal["output", "input", "sum"] = "output"
    """What of it is read: its output, its input, or its output added to the input of `block`."""
    layer: int | None = None
    """Block, counted from 0; None for a module given by name."""
    site: Site | None = None
    """What is read at that block; None for a module given by name."""
    block: str = ""
    """Name of that block's module."""

    def __str__(self) -> str:
        """Name the place as a person would."""
        return f"{self.site} of {self.block}" if self.site else self.name


def find_hook(model: nn.Module, config: SubjectConfig) -> HookPoint:
    """Return the hook point a config names.

    Raises:
        ConfigError: there is no such module, block or site; says what there is.
    """
    if config.hook is not None:
        return _named(model, config.hook)
    blocks = block_names(model)
    layer = default_layer(len(blocks)) if config.layer is None else config.layer
    if layer >= len(blocks):
        raise ConfigError(
            f"subject.layer = {layer}, and {config.model} has {len(blocks)} blocks, counted from 0",
            hint=f"Give a layer from 0 to {len(blocks) - 1}.",
        )
    return _at_site(model, blocks[layer], layer=layer, site=config.site)


def default_layer(n_layers: int) -> int:
    """Return the block after which three quarters of the depth are done, never the last one.

    Source: paper 2.1 (GPT-2 small: block 8 of 12).
    """
    return max(0, min(-(-3 * n_layers // 4), n_layers - 1) - 1)


def block_names(model: nn.Module) -> list[str]:
    """Return the names of the transformer blocks, in order; the list of them is found by its build."""
    found = [
        [f"{name}.{i}" for i in range(len(module))]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(_child(block, ATTENTION) for block in module)
    ]
    depth = getattr(_text_config(model), "num_hidden_layers", 0)
    if not found:
        raise ConfigError(
            f"no list of transformer blocks found in {type(model).__name__}",
            hint="Name a module with subject.hook instead of layer and site.",
        )
    return max(found, key=lambda names: (len(names) == depth, len(names)))


@contextmanager
def hooked(model: nn.Module, hook: HookPoint, see: See) -> Iterator[None]:
    """Show every pass through a hook point to `see`, and put in its place what `see` returns."""
    handles = _at_sum(model, hook, see) if hook.end == "sum" else [_at_end(model, hook, see)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _at_end(model: nn.Module, hook: HookPoint, see: See) -> RemovableHandle:
    def before(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        return after(_module, (), args)

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        old = _first(output, hook)
        new = see(old)
        return None if new is None else _put_first(output, new.reshape(old.shape).to(old.dtype))

    module = model.get_submodule(hook.name)
    return module.register_forward_pre_hook(before) if hook.end == "input" else module.register_forward_hook(after)


def _at_sum(model: nn.Module, hook: HookPoint, see: See) -> list[RemovableHandle]:
    stream: list[Tensor] = []

    def at_block(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream[:] = [args[0] if args else kwargs["hidden_states"]]

    def at_branch(_module: nn.Module, _args: Any, output: Any) -> Any:
        branch = _first(output, hook)
        new = see(stream[0] + branch.reshape(stream[0].shape))
        # What is added is what can be replaced: the sum itself is no module's output.
        return None if new is None else _put_first(output, (new.to(branch.dtype) - stream[0]).reshape(branch.shape))

    return [
        model.get_submodule(hook.block).register_forward_pre_hook(at_block, with_kwargs=True),
        model.get_submodule(hook.name).register_forward_hook(at_branch),
    ]


def check_site(model: nn.Module, hook: HookPoint, input_ids: Tensor) -> None:
    """Check on a real pass that the model adds up as the hook point's site supposes.

    Raises:
        SubjectError: this architecture is built otherwise.
    """
    seen: dict[str, Tensor] = {}
    places = {"output": HookPoint(hook.block)} | _parts_to_compare(model, hook)
    with ExitStack() as stack, torch.no_grad():
        for key, place in places.items():
            stack.enter_context(hooked(model, place, partial(_keep, seen, key)))
        model(input_ids=input_ids, use_cache=False)
    if hook.site == "mlp_post":
        left, right = seen["mlp"], seen["linear"]
    else:
        left, right = seen["output"] - seen["mid"], seen["mlp"]
    slack = 16 * torch.finfo(next(model.parameters()).dtype).eps * seen["output"].norm()
    if (left.reshape(-1) - right.reshape(-1)).norm() > 1e-3 * right.norm() + slack:
        raise SubjectError(
            f"{type(model).__name__} does not add up as {hook.site} supposes at {hook.block}",
            hint="Use subject.site: resid_post, or name a module with subject.hook.",
        )


def _keep(seen: dict[str, Tensor], key: str, found: Tensor) -> None:
    seen[key] = found.float()


def _parts_to_compare(model: nn.Module, hook: HookPoint) -> dict[str, HookPoint]:
    layer = hook.layer or 0
    mlp = _at_site(model, hook.block, layer=layer, site="mlp_delta")
    if hook.site == "mlp_post":
        return {"mlp": HookPoint(_part(model, hook.block, MLP)), "linear": HookPoint(hook.name)}
    return {"mid": _at_site(model, hook.block, layer=layer, site="resid_mid"), "mlp": mlp}


def _at_site(model: nn.Module, block: str, *, layer: int, site: Site) -> HookPoint:
    children = dict(model.get_submodule(block).named_children())
    if site == "resid_post":
        return HookPoint(block, layer=layer, site=site, block=block)
    if site == "mlp_post":
        return HookPoint(_last_linear(model, _part(model, block, MLP)), "input", layer, site, block)
    if site == "mlp_delta":
        norm = next((name for name in POST_MLP if name in children), None)
        return HookPoint(f"{block}.{norm}" if norm else _part(model, block, MLP), "output", layer, site, block)
    norm = next((norm for sign, norm in POST_ATTENTION.items() if sign in children and norm in children), None)
    name = f"{block}.{norm}" if norm else _part(model, block, ATTENTION)
    return HookPoint(name, "sum" if site == "resid_mid" else "output", layer, site, block)


def _named(model: nn.Module, name: str) -> HookPoint:
    names = [known for known, _ in model.named_modules() if known]
    if name in names:
        return HookPoint(name)
    near = get_close_matches(name, names, n=3, cutoff=0.5) or names[:3]
    raise ConfigError(f"subject.hook: the model has no module {name!r}", hint=f"Near it: {', '.join(near)}")


def _part(model: nn.Module, block: str, names: tuple[str, ...]) -> str:
    part = _child(model.get_submodule(block), names)
    if part is None:
        raise ConfigError(
            f"{block} of {type(model).__name__} has none of {', '.join(names)}",
            hint="Use subject.site: resid_post, or name a module with subject.hook.",
        )
    return f"{block}.{part}"


def _last_linear(model: nn.Module, mlp: str) -> str:
    # Conv1D is GPT-2's linear map; both hold one weight matrix.
    found = [
        f"{mlp}.{name}".rstrip(".")
        for name, module in model.get_submodule(mlp).named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    if not found:
        raise ConfigError(f"{mlp} has no linear map to read before", hint="Name a module with subject.hook.")
    return found[-1]


def _child(block: nn.Module, names: tuple[str, ...]) -> str | None:
    children = dict(block.named_children())
    return next((name for name in names if name in children), None)


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _first(output: Any, hook: HookPoint) -> Tensor:
    value = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(value, Tensor):
        raise SubjectError(f"{hook.name} gives a {type(value).__name__}, not a tensor", hint="Name another module.")
    return value


def _put_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value
