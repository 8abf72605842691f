"""Refuse, before anything is queued, what a trainer would find out: configs that do not fit a model on this disk.

Of a model that is not here nothing is said: the first trainer that loads it does. Reads a few small files.
"""

import re
from collections.abc import Collection, Hashable
from difflib import get_close_matches
from functools import cache
from typing import Any

from orchestrator.config import synthetic
from orchestrator.config.job import JobConfig
from orchestrator.config.model_fit import check_bos, check_context, check_layer, check_text_limit
from orchestrator.errors import ConfigError
from orchestrator.estimates import subject_files
from orchestrator.estimates.flops import hook_width
from orchestrator.estimates.memory import state_bytes

MOST_STATE_BYTES = 1 << 44
"""Of weights, gradients, moments and averages of one SAE: 16 TiB, several times what the GPUs of one machine hold."""
_WITHOUT_WEIGHTS = re.compile(r".*(act|drop|rotary|rope|gelu|relu|silu|softmax|identity).*", re.IGNORECASE)
"""Names of modules that have no weights, so that no weight file names them."""


def check_subjects(configs: Collection[JobConfig]) -> None:
    """Check layer, hook point, context length, BOS token and size of every config, as far as files here tell.

    Raises:
        ConfigError: names the first key that does not fit, and what does.
    """
    described = cache(subject_files.read_json)
    modules = cache(subject_files.module_names)
    bos = cache(subject_files.has_bos)
    for config in {_size_key(config): config for config in configs}.values():
        _check_size(config)
    for config in {_text_key(config): config for config in configs}.values():
        if not synthetic.is_synthetic(config.subject.model):
            folder = subject_files.model_folder(config.subject)
            _check_model(config, described(folder / "config.json"))
            check_bos(config.data, has_bos=not config.data.prepend_bos or bos(folder) is not False)
            check_text_limit(config)
            if config.subject.hook is not None:
                _check_hook(config.subject.hook, modules(folder))


def _size_key(config: JobConfig) -> Hashable:
    return config.subject, config.sae.n_latents, config.sae.expansion, config.sae.k


def _text_key(config: JobConfig) -> Hashable:
    return config.subject, config.data, config.training.heldout_tokens, config.training.batch_tokens


def _check_model(config: JobConfig, described: dict[str, Any]) -> None:
    n_blocks = subject_files.number_in(described, subject_files.DEPTH_KEYS)
    if n_blocks is not None:
        check_layer(config.subject, n_blocks)
    check_context(config.data, subject_files.number_in(described, subject_files.CONTEXT_KEYS))


def _check_size(config: JobConfig) -> None:
    """Refuse a size that no machine holds, and a k above the latents of a width that is known."""
    width = hook_width(config.subject)
    if width is not None:
        config.sae.latents(width)
    needed = state_bytes(config) if width is not None else 8 * (config.sae.n_latents or 0)  # two weights of a latent
    if needed > MOST_STATE_BYTES:
        raise ConfigError(
            f"sae: training this SAE takes {needed / (1 << 40):,.0f} TiB of memory, and no machine has that",
            hint="Lower sae.n_latents or sae.expansion.",
        )


def _check_hook(hook: str, modules: frozenset[str]) -> None:
    """Refuse a name that is nearly that of a module, or a number that a list of modules does not reach.

    A weight file may name a module otherwise than the loaded model does, and names none without weights: any other
    name is left to the trainer.
    """
    parts = hook.split(".")
    for at, part in enumerate(parts):
        above = ".".join(parts[:at])
        siblings = {name[len(above) :].lstrip(".").split(".")[0] for name in modules if _is_in(name, above)}
        if not siblings:
            return
        if part in siblings:
            continue
        numbers = part.isdigit() and all(name.isdigit() for name in siblings)
        near = get_close_matches(part, siblings, n=3, cutoff=0.6)
        if numbers or (near and not _WITHOUT_WEIGHTS.fullmatch(part)):
            inside = f"{above} has no {part!r}" if above else f"the model has no module {part!r}"
            found = f"It has {len(siblings)}, counted from 0." if numbers else f"Near it: {', '.join(near)}"
            raise ConfigError(f"subject.hook: {hook!r}: {inside}", hint=found)
        return


def _is_in(name: str, above: str) -> bool:
    return not above or name.startswith(f"{above}.")
