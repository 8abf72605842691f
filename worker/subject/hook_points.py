"""Find the hook point a config names, and read or replace activations there."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from orchestrator.config.job import SubjectConfig
from orchestrator.config.model_fit import check_layer
from orchestrator.config.sites import default_layer
from orchestrator.errors import ConfigError, SubjectError
from worker.subject.hook_sites import ATTENTION, SITE_RULES, HookPoint, child_named, hook_point_at

Visit = Callable[[Tensor], Tensor | None]
"""Takes the activations at a hook point; returns their replacement, or None to leave them."""


def single_places(model: nn.Module, config: SubjectConfig) -> tuple[SubjectConfig, ...]:
    """Return a config of each single place that a config reads: itself, unless it names several layers.

    Raises:
        ConfigError: the model has not these layers, or no list of blocks.
    """
    if config.layers is None:
        return (config,)
    n_blocks = len(block_names(model))
    check_layer(config, n_blocks)
    return config.places(n_blocks)


def several(config: SubjectConfig) -> ConfigError:
    """Return the error of a config that names several layers where one place is read."""
    layers = config.layers if isinstance(config.layers, str) else [*(config.layers or ())]
    return ConfigError(
        f"subject.layers = {layers}: one place is read here, and this names several",
        hint="Name one with subject.layer.",
    )


def find_hook(model: nn.Module, config: SubjectConfig) -> HookPoint:
    """Return the hook point a config names.

    Raises:
        ConfigError: there is no such module, block or site, or several are named; says what there is.
    """
    if config.layers is not None:
        raise several(config)
    if config.hook is not None:
        return _named(model, config.hook)
    blocks = block_names(model)
    check_layer(config, len(blocks))
    layer = default_layer(len(blocks)) if config.layer is None else config.layer
    return hook_point_at(model, blocks[layer], layer=layer, site=config.site)


def block_names(model: nn.Module) -> list[str]:
    """Return the names of the transformer blocks, in order; the list of them is found by its build."""
    found = [
        [f"{name}.{i}" for i in range(len(module))]
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(child_named(block, ATTENTION) for block in module)
    ]
    depth = getattr(_text_config(model), "num_hidden_layers", 0)
    if not found:
        raise ConfigError(
            f"no list of transformer blocks found in {type(model).__name__}",
            hint="Name a module with subject.hook instead of layer and site.",
        )
    return max(found, key=lambda names: (len(names) == depth, len(names)))


@contextmanager
def hooked(model: nn.Module, hook: HookPoint, visit: Visit) -> Iterator[None]:
    """Call `visit` with the activations of every pass through a hook point, and put its answer in their place."""
    handles = _hook_sum(model, hook, visit) if hook.end == "sum" else [_hook_end(model, hook, visit)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook_end(model: nn.Module, hook: HookPoint, visit: Visit) -> RemovableHandle:
    def before(_module: nn.Module, args: tuple[Any, ...]) -> Any:
        return after(_module, (), args)

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        old = _first(output, hook)
        new = visit(old)
        return None if new is None else _put_first(output, new.reshape(old.shape).to(old.dtype))

    module = model.get_submodule(hook.name)
    return module.register_forward_pre_hook(before) if hook.end == "input" else module.register_forward_hook(after)


def _hook_sum(model: nn.Module, hook: HookPoint, visit: Visit) -> list[RemovableHandle]:
    stream: list[Tensor] = []

    def at_block(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream[:] = [args[0] if args else kwargs["hidden_states"]]

    def at_branch(_module: nn.Module, _args: Any, output: Any) -> Any:
        branch = _first(output, hook)
        if branch.numel() != stream[0].numel():
            raise SubjectError(
                f"{hook.name} gives shape {tuple(branch.shape)}, and {hook.block} reads {tuple(stream[0].shape)}",
                hint="Use subject.site: resid_post, or name a module with subject.hook.",
            )
        new = visit(stream[0] + branch.reshape(stream[0].shape))
        # What is added is what can be replaced: the sum itself is no module's output.
        return None if new is None else _put_first(output, (new.to(branch.dtype) - stream[0]).reshape(branch.shape))

    return [
        model.get_submodule(hook.block).register_forward_pre_hook(at_block, with_kwargs=True),
        model.get_submodule(hook.name).register_forward_hook(at_branch),
    ]


def check_site(model: nn.Module, hook: HookPoint, input_ids: Tensor) -> None:
    """Check on a real forward pass that the model adds up as the site of a hook point supposes.

    Raises:
        SubjectError: this architecture is built otherwise.
    """
    find_equality = SITE_RULES[hook.site].equality if hook.site else None
    if find_equality is None:
        return
    left, right, minus = find_equality(model, hook.block)
    points = {"block": HookPoint(hook.block), "left": left, "right": right}
    if minus is not None:
        points["minus"] = minus
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack, torch.no_grad():
        for key, point in points.items():
            stack.enter_context(hooked(model, point, partial(_keep, seen, key)))
        model(input_ids=input_ids, use_cache=False)
    slack = 16 * torch.finfo(next(model.parameters()).dtype).eps * seen["block"].norm()
    if not _adds_up(seen, points, slack):
        raise SubjectError(
            f"{type(model).__name__} does not add up as {hook.site} supposes at {hook.block}",
            hint="Use subject.site: resid_post, or name a module with subject.hook.",
        )


def _adds_up(seen: dict[str, Tensor], points: Iterable[str], slack: Tensor) -> bool:
    # A mixture of experts may run a part on some tokens alone, or never.
    if seen.keys() != {*points} or len({seen[key].numel() for key in seen if key != "block"}) > 1:
        return False
    left, right = seen["left"].reshape(-1), seen["right"].reshape(-1)
    found = left - seen["minus"].reshape(-1) if "minus" in seen else left
    return bool((found - right).norm() <= 1e-3 * right.norm() + slack)


def _keep(seen: dict[str, Tensor], key: str, found: Tensor) -> None:
    seen[key] = found.float()


def _named(model: nn.Module, name: str) -> HookPoint:
    names = [known for known, _ in model.named_modules() if known]
    if name in names:
        return HookPoint(name)
    near = get_close_matches(name, names, n=3, cutoff=0.5) or names[:3]
    raise ConfigError(f"subject.hook: the model has no module {name!r}", hint=f"Near it: {', '.join(near)}")


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
