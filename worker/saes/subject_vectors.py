"""The activations an SAE is measured on: of its subject, at its place, over a text."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orchestrator.config.job import JobConfig
from orchestrator.config.synthetic import is_synthetic
from worker.activations.model_source import ModelActivations
from worker.activations.source import ActivationSource
from worker.activations.synthetic_source import SyntheticActivations
from worker.data import token_file
from worker.lens.opening import open_lens
from worker.subject.model import load


class Vectors(NamedTuple):
    """Activations as they are, or in the space of a lens, and what they are of."""

    values: Tensor
    """(n_tokens, d_model), float32."""
    text: str
    """Or the distribution they were drawn from."""
    place: dict[str, Any]
    """The facts they say of an SAE: subject, revision, layers, site, hook_point, context_length, prepend_bos."""


def _source(config: JobConfig, tokens_folder: Path, device: str, lenses: Path | None) -> ActivationSource:
    if is_synthetic(config.subject.model):
        return SyntheticActivations(config.subject.model, device)
    subject = load(config.subject, device)
    tokens = token_file.pack(config.data, subject.tokenizer, tokens_folder)
    return ModelActivations(subject, tokens, config, opener=partial(open_lens, lenses) if lenses else None)


def read_vectors(config: JobConfig, tokens_folder: Path, device: str, *, lenses: Path | None = None) -> Vectors:
    """Read the held-out text of a config at its place; `lenses`: the folder of the lens that it may name.

    Raises:
        ConfigError, SubjectError, MachineError: there is no such model, place or text, or it cannot be read here.
    """
    with torch.inference_mode():
        (values,) = _source(config, tokens_folder, device, lenses).heldout(config)
    layers = config.subject.layers or ((config.subject.layer,) if config.subject.layer is not None else ())
    place = {
        "subject": config.subject.model,
        "revision": config.subject.revision,
        "layers": tuple(layers),
        "site": None if config.subject.hook else config.subject.site,
        "context_length": config.data.context_length,
        "prepend_bos": config.data.prepend_bos,
    }
    if config.subject.hook:
        place["hook_point"] = config.subject.hook
    return Vectors(values, config.subject.model if is_synthetic(config.subject.model) else config.data.source, place)
