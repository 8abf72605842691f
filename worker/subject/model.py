"""The subject: a language model, loaded, read at hook points and patched there."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orchestrator.config.job import Dtype, SubjectConfig
from orchestrator.errors import ConfigError, SubjectError, shared_error
from worker.accelerator import fast_dtype
from worker.subject.hook_points import block_names, check_site, find_hook, hooked, several, single_places
from worker.subject.hook_sites import HookPoint
from worker.subject.model_files import describe, fingerprint, load_model, locate, quiet
from worker.subject.tokenizer import load_tokenizer

_PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A language model and one hook point of it: a view; the views of one model share its weights."""

    config: SubjectConfig
    """What it was loaded by; `dtype: auto` is settled."""
    model: Any
    """The transformers model, in evaluation mode, without gradients."""
    tokenizer: Any
    hook: HookPoint
    d_model: int
    """Width at the hook point."""
    dtype: torch.dtype
    """Precision of what is read at the hook point."""
    n_layers: int
    """Blocks of the model."""
    parameters_run: int
    """Parameters that work on every token up to the hook point; embedding tables are looked up, and left out."""
    fingerprint: str
    """sha256 of the model's config and weight files."""
    device: torch.device

    @property
    def precision(self) -> Dtype:
        """Return the precision that the model was loaded in: of what is read, `dtype` may be another."""
        assert self.config.dtype != "auto", "it is settled before a model is loaded"
        return self.config.dtype

    @property
    def max_context(self) -> int | None:
        """Return the most tokens the model was built to read at once, where it says so."""
        value = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(value) if value else None

    @property
    def vocabulary(self) -> int:
        """Return the number of token ids the model knows."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def at(self, config: SubjectConfig) -> "Subject":
        """Return a view of the same loaded model at another hook point: nothing is loaded, weights are shared.

        Raises:
            ConfigError: the config names another model, revision or precision, or a hook point it has not.
            SubjectError: this architecture does not add up as the site supposes.
        """
        config = config.settled(self.precision)
        for name in ("model", "revision", "dtype", "trust_remote_code"):
            mine, theirs = getattr(self.config, name), getattr(config, name)
            if mine != theirs:
                raise ConfigError(
                    f"subject.{name} = {theirs!r}, and the model in memory was loaded with {mine!r}",
                    hint="Jobs share a stream of activations only where they read the same model.",
                )
        if config == self.config:
            return self
        return replace(self, config=config, **_probe(self.model, config, self.device)._asdict())


class _HookFacts(NamedTuple):
    """What a forward pass tells of a hook point."""

    hook: HookPoint
    d_model: int
    dtype: torch.dtype
    parameters_run: int


class _Stop(Exception):
    """Ends a forward pass once every hook point has been read."""


Replace = Callable[[Tensor], Tensor]
"""Maps the activations at a hook point, (batch, context, d_model) float32, to what is put in their place."""


def load(config: SubjectConfig, device: torch.device | str = "cpu") -> Subject:
    """Load a model and its tokenizer, and find the one hook point that a config names: `load_at_first` of one.

    Raises:
        SubjectError, ConfigError: as `load_at_first`; or several hook points are named.
    """
    if config.layers == "all" or len(config.layers or ()) > 1:
        raise several(config)
    return load_at_first([config], device)


def load_at_first(configs: Sequence[SubjectConfig], device: torch.device | str = "cpu") -> Subject:
    """Load the model that some configs name and its tokenizer, once, at the first of their hook points that it has.

    Of a config that names several layers this is the first of them. `dtype: auto` is settled for the device.

    Raises:
        SubjectError: there is no such model, or it cannot be used safely or fully.
        ConfigError: none of the hook points is in the model; says so of the last.
    """
    if configs[0].dtype == "auto":
        configs = [config.settled(fast_dtype(torch.device(device).type)) for config in configs]
    folder = locate(configs[0])
    model = load_model(folder, configs[0]).to(device)
    with shared_error("stream"):
        tokenizer = load_tokenizer(folder, configs[0])
    config, facts = _first_place(model, configs, torch.device(device))
    return Subject(
        config=config,
        model=model,
        tokenizer=tokenizer,
        n_layers=_depth(model),
        fingerprint=fingerprint(folder),
        device=torch.device(device),
        **facts._asdict(),
    )


def read(subjects: Sequence[Subject], input_ids: Tensor) -> list[Tensor]:
    """Return the activations at the hook points of some views of ONE model, from one forward pass.

    The pass ends where the last of them has been read. What is returned is what the model computed, uncopied:
    tensors of inference mode in the model's own precision, of which autograd knows nothing.

    Shapes:
        input_ids (batch, context) -> one (batch, context, d_model) for each subject
    """
    assert all(s.model is subjects[0].model for s in subjects), "views of one model"
    return _read(subjects[0].model, [s.hook for s in subjects], input_ids)


def capture(subject: Subject, input_ids: Tensor) -> Tensor:
    """Return the activations at the hook point; the rest of the model is not run.

    Shapes:
        input_ids (batch, context) -> (batch, context, d_model), float32, free for use under autograd.
    """
    # The copy is made outside inference mode: autograd refuses tensors born inside it.
    return read([subject], input_ids)[0].to(torch.float32, copy=True)


def check_widths(subjects: Sequence[Subject]) -> None:
    """Refuse hook points of several widths: one SAE reads them all.

    Raises:
        ConfigError: names two of them.
    """
    first = subjects[0]
    for other in subjects[1:]:
        if other.d_model != first.d_model:
            raise ConfigError(
                f"subject.layers: {first.hook} is {first.d_model} wide and {other.hook} {other.d_model}, and one SAE "
                "reads vectors of one width",
                hint="Give subject.layers of one width, or another subject.site.",
            )


def run_patched(subjects: Sequence[Subject], input_ids: Tensor, replacements: Sequence[Replace]) -> Tensor:
    """Run the whole model with the activations at the hook points of some views of it replaced; return its logits.

    One forward pass: what is replaced at a hook point changes what is found at those behind it. A replacement that
    returns the tensor it was given changes nothing, bit for bit.

    Shapes:
        input_ids (batch, context) -> (batch, context, vocabulary)
    """
    model = subjects[0].model
    assert all(subject.model is model for subject in subjects), "views of one model"
    with torch.no_grad(), ExitStack() as stack:
        for subject, replace_by in zip(subjects, replacements, strict=True):
            visit = partial(_replaced, input_ids.shape, replace_by)
            stack.enter_context(hooked(model, subject.hook, visit))
        logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits


def _replaced(shape: torch.Size, replace_by: Replace, found: Tensor) -> Tensor | None:
    old = found.reshape(*shape, -1).float()
    new = replace_by(old)
    return None if new is old else new


def width(config: SubjectConfig) -> int:
    """Return the width at the hook point from the model's config, without its weights.

    Raises:
        SubjectError, ConfigError: as `load`.
    """
    quiet()
    from transformers import AutoModelForCausalLM

    described = describe(locate(config, weights=False), config)
    if config.has_model_width:
        return int(described.get_text_config().hidden_size)
    with torch.device("meta"):
        maker: Any = AutoModelForCausalLM
        model = maker.from_config(described, trust_remote_code=config.trust_remote_code)
    hook = find_hook(model, single_places(model, config)[0])
    module = model.get_submodule(hook.name)
    shape = tuple(getattr(module, "weight", torch.empty(0)).shape)
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
        # Conv1D keeps (in, out), Linear (out, in).
        return int(shape[(hook.end == "input") == isinstance(module, nn.Linear)])
    return int(shape[-1]) if len(shape) and shape[-1] else int(described.get_text_config().hidden_size)


def _first_place(
    model: Any, configs: Sequence[SubjectConfig], device: torch.device
) -> tuple[SubjectConfig, _HookFacts]:
    for config in configs[:-1]:
        with suppress(ConfigError, SubjectError):  # reported when that job is started
            first = single_places(model, config)[0]
            return first, _probe(model, first, device)
    with shared_error("place"):
        first = single_places(model, configs[-1])[0]
        return first, _probe(model, first, device)


def _probe(model: Any, config: SubjectConfig, device: torch.device) -> _HookFacts:
    """Find the hook point, and run a few tokens up to it to learn what is there."""
    hook = find_hook(model, config)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    input_ids = torch.arange(2 * _PROBE_TOKENS, device=device).view(2, _PROBE_TOKENS) % vocabulary
    check_site(model, hook, input_ids)
    modules_run: list[nn.Module] = []
    handles = [m.register_forward_hook(lambda module, *_: modules_run.append(module)) for m in model.modules()]
    try:
        found = _read(model, [hook], input_ids)[0]
    finally:
        for handle in handles:
            handle.remove()
    return _HookFacts(hook, found.shape[-1], found.dtype, _count_parameters(modules_run))


def _read(model: Any, hooks: Sequence[HookPoint], input_ids: Tensor) -> list[Tensor]:
    distinct = list(dict.fromkeys(hooks))
    found: dict[HookPoint, Tensor] = {}

    def keep(hook: HookPoint, values: Tensor) -> None:
        if hook in found:  # a module that a block runs twice: its first pass counts, as it does when read alone
            return
        is_last = len(found) == len(distinct) - 1
        # What is read on the way is copied: later layers may write in place.
        found[hook] = values if is_last else values.clone()
        if is_last:
            raise _Stop

    with suppress(_Stop), torch.inference_mode(), ExitStack() as stack:
        for hook in distinct:
            stack.enter_context(hooked(model, hook, partial(keep, hook)))
        model(input_ids=input_ids, use_cache=False)
    for hook in distinct:
        if hook not in found:
            raise SubjectError(
                f"the model's forward pass never runs {hook}", hint="Name another module with subject.hook."
            )
    return [_per_token(found[hook], hook, input_ids) for hook in hooks]


def _per_token(found: Tensor, hook: HookPoint, input_ids: Tensor) -> Tensor:
    tokens = input_ids.shape
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


def _count_parameters(modules: list[nn.Module]) -> int:
    weights = {
        id(p): p.numel() for m in modules if not isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    }
    return sum(weights.values())
