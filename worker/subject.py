"""The subject: a language model, loaded, read at one hook point and patched there."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.config import SubjectConfig
from orchestrator.errors import ConfigError, SubjectError
from worker.hooks import HookPoint, block_names, check_site, find_hook, hooked
from worker.weights import describe, fingerprint, load_model, load_tokenizer, locate, quiet

_PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A language model with the place its activations are read at."""

    model: Any
    """The transformers model, in evaluation mode, without gradients."""
    tokenizer: Any
    hook: HookPoint
    d_model: int
    """Width at the hook point."""
    n_layers: int
    """Blocks of the model."""
    parameters_run: int
    """Parameters that work on every token up to the hook point; embedding tables are looked up, and left out."""
    fingerprint: str
    """sha256 of the model's config and weight files."""
    device: torch.device

    @property
    def max_context(self) -> int | None:
        """Return the most tokens the model was built to read at once, where it says so."""
        value = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(value) if value else None

    @property
    def vocabulary(self) -> int:
        """Return the number of token ids the model knows."""
        return int(self.model.get_input_embeddings().weight.shape[0])


class _Stop(Exception):
    """Ends a forward pass once the hook point has been read."""


def load(config: SubjectConfig, device: torch.device | str = "cpu") -> Subject:
    """Load a model and its tokenizer, and find the hook point.

    Raises:
        SubjectError: there is no such model, or it cannot be used safely or fully.
        ConfigError: the hook point is not in the model.
    """
    folder = locate(config)
    model = load_model(folder, config).to(device)
    hook = find_hook(model, config)
    check = (
        torch.arange(2 * _PROBE_TOKENS, device=device).view(2, _PROBE_TOKENS)
        % model.get_input_embeddings().weight.shape[0]
    )
    if hook.site not in (None, "resid_post"):
        check_site(model, hook, check)
    run: list[nn.Module] = []
    marks = [m.register_forward_hook(lambda module, *_: run.append(module)) for m in model.modules()]
    width = _read(model, hook, check).shape[-1]
    for mark in marks:
        mark.remove()
    return Subject(
        model=model,
        tokenizer=load_tokenizer(folder, config),
        hook=hook,
        d_model=width,
        n_layers=_depth(model),
        parameters_run=_count(run),
        fingerprint=fingerprint(folder),
        device=torch.device(device),
    )


def capture(subject: Subject, input_ids: Tensor) -> Tensor:
    """Return the activations at the hook point; nothing behind it is run.

    Shapes:
        input_ids (batch, context) -> (batch, context, d_model), float32, free for use under autograd.
    """
    # The copy is made outside inference mode: autograd refuses tensors born inside it.
    return _read(subject.model, subject.hook, input_ids).to(torch.float32, copy=True)


def run_patched(subject: Subject, input_ids: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
    """Run the whole model with the activations at the hook point replaced; return its logits.

    Shapes:
        input_ids (batch, context) -> (batch, context, vocabulary)
        `replace` maps (batch, context, d_model) float32 to its like
    """
    shape = input_ids.shape

    def see(found: Tensor) -> Tensor | None:
        old = found.reshape(*shape, -1).float()
        new = replace(old)
        return None if new is old else new

    with torch.no_grad(), hooked(subject.model, subject.hook, see):
        logits: Tensor = subject.model(input_ids=input_ids, use_cache=False).logits
    return logits


def width(config: SubjectConfig) -> int:
    """Return the width at the hook point from the model's config, without its weights.

    Raises:
        SubjectError, ConfigError: as `load`.
    """
    quiet()
    from transformers import AutoModelForCausalLM

    described = describe(locate(config, weights=False), config)
    if config.hook is None and config.site != "mlp_post":
        return int(described.get_text_config().hidden_size)
    with torch.device("meta"):
        maker: Any = AutoModelForCausalLM
        model = maker.from_config(described, trust_remote_code=config.trust_remote_code)
    hook = find_hook(model, config)
    module = model.get_submodule(hook.name)
    shape = tuple(getattr(module, "weight", torch.empty(0)).shape)
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        # Conv1D keeps (in, out), Linear (out, in).
        return int(shape[(hook.end == "input") == isinstance(module, nn.Linear)])
    return int(shape[-1]) if len(shape) and shape[-1] else int(described.get_text_config().hidden_size)


def _read(model: Any, hook: HookPoint, input_ids: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def see(found: Tensor) -> None:
        seen.append(found)
        raise _Stop

    with suppress(_Stop), torch.inference_mode(), hooked(model, hook, see):
        model(input_ids=input_ids, use_cache=False)
    if not seen:
        raise SubjectError(f"the model's forward pass never runs {hook}", hint="Name another module with subject.hook.")
    found, tokens = seen[0], input_ids.shape
    if (
        not found.is_floating_point()
        or found.numel() % tokens.numel()
        or found.shape[:-1] not in (tokens, (tokens.numel(),))
    ):
        raise SubjectError(
            f"{hook} gives {found.dtype} of shape {tuple(found.shape)} for {tuple(tokens)} tokens",
            hint="Name a module that gives one vector per token.",
        )
    return found.reshape(*tokens, -1)


def _depth(model: nn.Module) -> int:
    try:
        return len(block_names(model))
    except ConfigError:
        return 0


def _count(modules: list[nn.Module]) -> int:
    weights = {
        id(p): p.numel() for m in modules if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    }
    return sum(weights.values())
