"""Contexts -> activations -> shuffled batches: one stream, a pure function of its config and a position."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config import JobConfig
from orchestrator.errors import ConfigError, SubjectError
from worker.contexts import Contexts
from worker.sae.normalize import normalize
from worker.subject import Subject, capture
from worker.tokens import TokenFile

CAPTURE_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""Tokens per forward pass, by kind of device. Fixed: another batch may round otherwise, and a resumed job must not."""


def stream(
    subject: Subject,
    tokens: TokenFile,
    config: JobConfig,
    *,
    start_tokens: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[Tensor]:
    """Yield batches without end, from a position on.

    Window w holds vectors [w·shuffle_tokens, (w+1)·shuffle_tokens) of the seeded order of contexts, permuted by a
    generator seeded by (seed, w). Starting inside a window captures that window again.

    Shapes:
        (batch_tokens, d_model), float32, normalised
    Raises:
        ConfigError: the text and the model do not fit the config.
        SubjectError: an activation is not finite; names its position.
    Source: numerics 1.
    """
    size, window_tokens = config.training.batch_tokens, config.training.shuffle_tokens
    assert start_tokens % size == 0, "a job stands at whole batches"
    contexts = _contexts(subject, tokens, config)
    window, offset = divmod(start_tokens, window_tokens)
    while True:
        values = _vectors(subject, contexts, config, start=window * window_tokens, stop=(window + 1) * window_tokens)
        values = values.to(device or subject.device)
        order = torch.randperm(window_tokens, generator=_generator(config.training.seed, window)).to(values.device)
        for first in range(offset, window_tokens, size):
            yield values[order[first : first + size]]
        window, offset = window + 1, 0


def heldout(subject: Subject, tokens: TokenFile, config: JobConfig) -> Tensor:
    """Return the fixed set every metric is measured on: the end of the text, in its own order.

    Shapes:
        (n_tokens, d_model), float32, normalised
    """
    contexts = _contexts(subject, tokens, config)
    parts = list(_captured(subject, contexts, config, contexts.heldout))
    return torch.cat(parts)


def sample(subject: Subject, tokens: TokenFile, config: JobConfig, n: int) -> Tensor:
    """Return the first n vectors of the training part, for what is measured once; the stream is not moved.

    Shapes:
        (min(n, vectors of an epoch), d_model), float32, normalised
    """
    contexts = _contexts(subject, tokens, config)
    return _vectors(subject, contexts, config, start=0, stop=min(n, contexts.n_vectors))


def captured_per_vector(tokens: TokenFile, config: JobConfig) -> float:
    """Return the tokens the subject reads for one trained vector: above 1 where special tokens are left out."""
    contexts = Contexts.of(tokens, config)
    return contexts.n_training * tokens.context_length / contexts.n_vectors


def _contexts(subject: Subject, tokens: TokenFile, config: JobConfig) -> Contexts:
    if subject.max_context is not None and tokens.context_length > subject.max_context:
        raise ConfigError(
            f"data.context_length = {tokens.context_length}: the model reads {subject.max_context} at most",
            hint=f"Set data.context_length to {subject.max_context} or less.",
        )
    if tokens.largest_id >= subject.vocabulary:
        raise SubjectError(
            f"the tokenizer gives id {tokens.largest_id}, and {config.subject.model} knows {subject.vocabulary} tokens",
            hint="Check the folder: tokenizer and weights are of two different models.",
        )
    return Contexts.of(tokens, config)


def _vectors(subject: Subject, contexts: Contexts, config: JobConfig, *, start: int, stop: int) -> Tensor:
    """Return vectors [start, stop) of the stream."""
    indices, skip = contexts.span(start, stop)
    values = torch.empty(stop - start, subject.d_model, device=subject.device)
    filled = -skip
    for part in _captured(subject, contexts, config, indices):
        kept = part[max(0, -filled) : stop - start - filled]
        at = max(0, filled)
        values[at : at + len(kept)] = kept
        filled += len(part)
    return values


def _captured(subject: Subject, contexts: Contexts, config: JobConfig, indices: NDArray[np.int64]) -> Iterator[Tensor]:
    """Yield the trained vectors of some contexts, normalised, one forward pass after another."""
    tokens = contexts.tokens
    per_pass = max(1, CAPTURE_TOKENS[subject.device.type] // tokens.context_length)
    for first in range(0, len(indices), per_pass):
        chosen = indices[first : first + per_pass]
        ids = tokens.contexts(chosen)
        found = capture(subject, torch.from_numpy(ids).to(subject.device))
        trained = contexts.is_trained(ids)
        vectors = found.flatten(0, 1)
        if not trained.all():
            vectors = vectors[torch.from_numpy(trained.reshape(-1)).to(subject.device)]
        # One sum finds any NaN or infinity; what it finds is looked for only then.
        if not torch.isfinite(vectors.sum()):
            _refuse(subject, found, trained, ids, chosen)
        yield normalize(vectors, config.sae.normalize).vectors


def _refuse(
    subject: Subject, found: Tensor, trained: NDArray[np.bool_], ids: NDArray[np.int64], chosen: NDArray[np.int64]
) -> None:
    bad = np.argwhere(~torch.isfinite(found).all(dim=-1).cpu().numpy() & trained)
    if len(bad):
        row, position = (int(i) for i in bad[0])
        raise SubjectError(
            f"activations at {subject.hook} are not finite: token {position} of context {chosen[row]} "
            f"(id {ids[row, position]}), {len(bad)} tokens in that pass",
            hint="Set subject.dtype: float32 (or bfloat16), or read another hook point.",
        )


def _generator(seed: int, window: int) -> torch.Generator:
    mixed = int(np.random.SeedSequence([seed, window]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(mixed >> 1)
