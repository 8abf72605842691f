"""Contexts -> activations -> shuffled batches: a stream, which is a pure function of its config and a position."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import torch
from torch import Tensor

from orchestrator.config.job import JobConfig, Normalize
from orchestrator.config.model_fit import check_context
from orchestrator.errors import ConfigError, SubjectError
from worker.activations.cached_forward import CacheStore
from worker.activations.forward import ForwardBatches
from worker.activations.heldout_split import Contexts
from worker.activations.shuffle import Captured, ShuffleBuffer, make_buffer
from worker.activations.source import Map
from worker.data.token_file import TokenFile
from worker.sae.normalize import normalize
from worker.subject.model import Subject

_TWO_MODELS = "Check the folder: tokenizer and weights are of two different models."
_SHARED = ("batch_tokens", "shuffle_tokens", "heldout_tokens")
Lenses = Callable[[JobConfig, Subject], Map | None]
"""Returns what maps the raw activations of a view for a config, before they are normalised; None: nothing does."""


def no_lens(config: JobConfig, subject: Subject) -> None:
    """Return None: activations are normalised as they are."""


def stream(
    subject: Subject,
    tokens: TokenFile,
    config: JobConfig,
    *,
    start_tokens: int = 0,
    device: torch.device | str | None = None,
    store: CacheStore | None = None,
) -> Iterator[Tensor]:
    """Yield batches without end, from a position on: `shared_stream` of one hook point.

    Shapes:
        (batch_tokens, d_model), float32, normalised
    Raises:
        ConfigError, SubjectError: as `shared_stream`.
    """
    shared = shared_stream([subject], tokens, [config], start_tokens=start_tokens, device=device, store=store)
    for (batch,) in shared:
        yield batch


def shared_stream(
    subjects: Sequence[Subject],
    tokens: TokenFile,
    configs: Sequence[JobConfig],
    *,
    start_tokens: int = 0,
    device: torch.device | str | None = None,
    store: CacheStore | None = None,
    lenses: Lenses = no_lens,
    captured: Captured | None = None,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield, without end, one batch for each (subject, config) pair: the same tokens in the same order for all.

    `subjects` are views of ONE loaded model (`subject.at`), subjects[i] with configs[i]. One forward pass, stopped
    after the deepest hook point, serves all, and pairs of one hook point, `sae.lens` and `sae.normalize` are given the
    SAME tensor: do not write to it. Each batch is, bit for bit on a CPU, what `stream` of that pair alone yields. Where
    a config says `data.activations: cache`, what is captured is kept in `store`; without one it is not kept.

    Window w holds vectors [w·shuffle_tokens, (w+1)·shuffle_tokens) of the seeded order of contexts, permuted by a
    generator seeded by (data.seed, w). Starting inside a window captures that window again. What `shared_sample` left
    in `captured` is not captured again.

    Shapes:
        one (batch_tokens, d_model) for each pair, float32, normalised
    Raises:
        ConfigError: the text and the model do not fit the config, or the configs each other.
        SubjectError: an activation is not finite; names its position.
    Source: numerics 1.
    """
    config = agreed(configs)
    size, window_tokens = config.training.batch_tokens, config.training.shuffle_tokens
    assert start_tokens % size == 0, "a job is always at a whole number of batches"
    contexts, forward = _contexts(subjects, tokens, config), _forward_batches(subjects, tokens, configs, store)
    read = list(zip(subjects, configs, strict=True))
    keys = [(forward.hooks.index(s.hook), c.sae.lens, c.sae.normalize) for s, c in read]
    maps = {key: lenses(c, s) for key, (s, c) in zip(keys, read, strict=True)}
    shuffle = ShuffleBuffer(forward, contexts, n_vectors=window_tokens, captured=captured)
    buffer = make_buffer(shuffle, seed=config.data.seed)
    first, offset = divmod(start_tokens, window_tokens)
    for window in count(first):
        values = buffer.take(window)
        for at in range(offset if window == first else 0, window_tokens, size):
            buffer.prefetch(n_calls=window_tokens // size)
            made = {
                key: normalized(values[key[0]][at : at + size], key[2], device, through=through)
                for key, through in maps.items()
            }
            yield tuple(made[key] for key in keys)


def heldout(subject: Subject, tokens: TokenFile, config: JobConfig, *, store: CacheStore | None = None) -> Tensor:
    """Return the fixed set every metric is measured on: `shared_heldout` of one hook point."""
    return shared_heldout([subject], tokens, config, store=store)[0]


def shared_heldout(
    subjects: Sequence[Subject],
    tokens: TokenFile,
    config: JobConfig,
    *,
    store: CacheStore | None = None,
    lenses: Lenses = no_lens,
) -> tuple[Tensor, ...]:
    """Return the end of the text, in its own order, at the hook points of some views of ONE model.

    Shapes:
        one (n_tokens, d_model) for each view, float32, normalised
    """
    contexts, forward = _contexts(subjects, tokens, config), _forward_batches(subjects, tokens, [config], store)
    forward.prepare(contexts.heldout)
    maps = [lenses(config, subject) for subject in forward.subjects]
    parts: list[list[Tensor]] = [[] for _ in forward.subjects]
    for first in range(0, contexts.n_heldout, forward.size):
        chosen = contexts.heldout[first : first + forward.size]
        is_trained = torch.from_numpy(contexts.is_trained(tokens.contexts(chosen))).to(forward.device)
        for part, through, subject, found in zip(parts, maps, forward.subjects, forward(chosen), strict=True):
            forward.check(found, is_trained, chosen, subject=subject)
            part.append(normalized(found[is_trained], config.sae.normalize, through=through))
    return tuple(map(torch.cat, parts))


def sample(
    subject: Subject, tokens: TokenFile, config: JobConfig, n: int, *, store: CacheStore | None = None
) -> Tensor:
    """Return the vectors that start from nothing else than the text: `shared_sample` of one hook point."""
    return shared_sample([subject], tokens, config, n, store=store)[0]


def shared_sample(
    subjects: Sequence[Subject],
    tokens: TokenFile,
    config: JobConfig,
    n: int,
    *,
    store: CacheStore | None = None,
    lenses: Lenses = no_lens,
    captured: Captured | None = None,
) -> tuple[Tensor, ...]:
    """Return the first n tokens' vectors of the stream, for what is measured once; the stream is not moved.

    Its forward batches are left in `captured`, where that is given: they are the stream's first ones.

    Shapes:
        one (min(n, tokens of an epoch), d_model) for each view of ONE model, float32, normalised
    """
    contexts = _contexts(subjects, tokens, config)
    forward = _forward_batches(subjects, tokens, [config], store)
    n_vectors = min(n, contexts.n_vectors)
    shuffle = ShuffleBuffer(forward, contexts, n_vectors=n_vectors, captured=captured, keeps=captured is not None)
    buffer = make_buffer(shuffle)
    return tuple(
        normalized(raw, config.sae.normalize, through=lenses(config, subject))
        for subject, raw in zip(forward.subjects, buffer.take(0), strict=True)
    )


def _forward_batches(
    subjects: Sequence[Subject], tokens: TokenFile, configs: Sequence[JobConfig], store: CacheStore | None
) -> ForwardBatches:
    if store is not None and any(config.data.activations == "cache" for config in configs):
        return store.forward_batches(subjects, tokens)
    return ForwardBatches(subjects, tokens)


def normalized(
    raw: Tensor, kind: Normalize, device: torch.device | str | None = None, *, through: Map | None = None
) -> Tensor:
    """Return raw activations normalised, in float32, free for use under autograd, and a copy of their own.

    `through`: what maps them before.
    """
    # The copy is made outside inference mode, because autograd refuses tensors made inside it; and it is never a view
    # of a window's buffer, which is written again while its last batches may still be in use.
    values = raw.to(torch.float32, copy=kind == "none" or raw.is_inference())
    vectors = normalize(values if through is None else through(values), kind).vectors
    return vectors if device is None else vectors.to(device)


def _contexts(subjects: Sequence[Subject], tokens: TokenFile, config: JobConfig) -> Contexts:
    subject = subjects[0]
    check_context(config.data, subject.max_context)
    if tokens.largest_id >= subject.vocabulary:
        raise SubjectError(
            f"the tokenizer gives id {tokens.largest_id}, and {config.subject.model} knows {subject.vocabulary} tokens",
            hint=_TWO_MODELS,
        )
    if tokens.bos_id is not None and tokens.bos_id >= subject.vocabulary:
        raise SubjectError(
            f"the tokenizer's BOS token has id {tokens.bos_id}, and {config.subject.model} knows "
            f"{subject.vocabulary} tokens",
            hint=f"Set data.prepend_bos: false. {_TWO_MODELS}",
        )
    return Contexts.of(tokens, config)


def agreed(configs: Sequence[JobConfig]) -> JobConfig:
    """Return the first of some configs if all of them read the same tokens in the same order.

    Raises:
        ConfigError: they do not; names the first key that differs.
    """
    first = configs[0]
    for other in configs[1:]:
        differing = [f"data.{name}" for name in type(first.data).model_fields if name != "activations"]
        differing += [f"training.{name}" for name in _SHARED]
        for path in differing:
            part, name = path.split(".")
            mine, theirs = getattr(getattr(first, part), name), getattr(getattr(other, part), name)
            if mine != theirs:
                raise ConfigError(
                    f"{path} is {mine!r} for one job and {theirs!r} for another: they cannot share a stream",
                    hint="Jobs share a stream only where data and batches are the same.",
                )
    return first
