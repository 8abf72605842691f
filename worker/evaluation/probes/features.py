"""What a model computes at the labelled stretches of texts: activations of one place, kept for every SAE of it."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.config.evaluation.probes import Pooling, ProbesOptions
from orchestrator.errors import SubjectError
from worker.evaluation.context import EvaluationContext
from worker.evaluation.probes.examples import Examples, binary_tasks, collect, why_unusable
from worker.evaluation.probes.sources import ProbeSource
from worker.subject.model import read
from worker.subject.tokenizer import tokenizer_json

_FORMAT = 2
"""Goes up when the same texts would give other features, or other baselines be drawn for them."""
_BATCH_TOKENS = 4096
Tick = Callable[[], None]


@dataclass(frozen=True)
class Part:
    """The examples that are fitted on, or those for testing."""

    vectors: Float[Tensor, "n_vectors d_model"]
    """Raw activations of the tokens of each example, one example after the other; float32."""
    counts: Int[Tensor, " n_examples"] | None
    """Tokens of each example; None: one each."""
    labels: Bool[Tensor, "n_tasks n_examples"]
    units: Int[Tensor, " n_examples"]
    """Of one text the examples have one number: a bootstrap draws texts."""

    @property
    def n(self) -> int:
        """Return the number of examples."""
        return len(self.units)


@dataclass(frozen=True)
class TaskSet:
    """Tasks of the same examples: one, or one for each label."""

    names: tuple[str, ...]
    left_out: dict[str, str]
    """Tasks that nothing can be fitted to, and why."""
    pooling: Pooling
    train: Part
    test: Part
    key: dict[str, Any]
    """What the features are of, for further entries of the store."""

    def to(self, device: torch.device) -> "TaskSet":
        """Return it with the activations on a device."""
        parts = (replace(part, vectors=part.vectors.to(device)) for part in (self.train, self.test))
        train, test = parts
        return replace(self, train=train, test=test)

    def pooled(self, values: Float[Tensor, "n_vectors n"], part: Part) -> Float[Tensor, "n_examples n"]:
        """Return the values of each example, of those of its tokens."""
        if part.counts is None:
            return values
        how = "mean" if self.pooling == "mean" else "max"
        return torch.segment_reduce(values, how, lengths=part.counts.to(values.device), axis=0)


def load_task_set(source: ProbeSource, context: EvaluationContext, options: ProbesOptions, tick: Tick) -> TaskSet:
    """Return the features of a source: from the store, or computed now and kept there.

    Raises:
        ConfigError, SubjectError, MachineError: as `sources`; the tokenizer tells no offsets and words are labelled;
            the activations are not finite.
    """
    key = _key(source, context, options)
    found = context.store.get(key, lambda: _compute(source, context, options, tick))
    about = json.loads(bytes(found["about"].tolist()))
    n_train, counts = int(found["n_train"]), found["counts"]
    n_vectors = int(counts[:n_train].sum())
    has_one_each = options.pooling == "last"

    def part(examples: slice, vectors: slice) -> Part:
        return Part(
            vectors=found["vectors"][vectors],
            counts=None if has_one_each else counts[examples],
            labels=found["labels"][:, examples],
            units=found["units"][examples],
        )

    return TaskSet(
        names=tuple(about["names"]),
        left_out=about["left_out"],
        pooling=options.pooling,
        train=part(slice(0, n_train), slice(0, n_vectors)),
        test=part(slice(n_train, None), slice(n_vectors, None)),
        key=key,
    )


def _key(source: ProbeSource, context: EvaluationContext, options: ProbesOptions) -> dict[str, Any]:
    subject, _ = context.model()
    known = json.dumps(tokenizer_json(subject.tokenizer) or sorted(subject.tokenizer.get_vocab()), sort_keys=True)
    return {
        "what": "probe features",
        "format": _FORMAT,
        "model": subject.fingerprint,
        "dtype": str(subject.dtype),
        "hook": str(subject.hook),
        **({"lens": context.lens_sha256} if context.lens is not None else {}),
        "tokenizer": hashlib.sha256(known.encode()).hexdigest(),
        "prepend_bos": context.config.data.prepend_bos,
        "seed": context.config.plan.seed,
        "name": source.name,
        "source": source.identity,
        "options": options.model_dump(
            include={
                "max_classes", "train_examples", "test_examples", "test_share", "pooling", "context_length",
            }
        ),
    }  # fmt: skip


def _compute(source: ProbeSource, context: EvaluationContext, options: ProbesOptions, tick: Tick) -> dict[str, Tensor]:
    subject, _ = context.model()
    examples = collect(source.read(), options, context.seed(source.name))
    bos = subject.tokenizer.bos_token_id if context.config.data.prepend_bos else None
    limit = min(options.context_length, subject.max_context or options.context_length)
    ids, ranges = _tokens(examples, subject.tokenizer, limit - (bos is not None), source.name)
    kept = np.flatnonzero(ranges[:, 1] > ranges[:, 0])
    ranges = ranges[kept]
    if options.pooling == "last":
        ranges[:, 0] = ranges[:, 1] - 1
    n_train = int((kept < examples.n_train).sum())
    tasks = binary_tasks(source.name, [examples.labels[i] for i in kept], options.max_classes)
    reasons = {name: why_unusable(is_one, n_train) for name, is_one in tasks.items()}
    left_out = {name: why for name, why in reasons.items() if why is not None}
    usable = {name: is_one for name, is_one in tasks.items() if name not in left_out}
    text_of = examples.text_of[kept]
    vectors = torch.zeros(0, subject.d_model)
    if usable:
        vectors = _activations(context, ids, _Wanted(text_of, ranges, bos), tick)
    if not vectors.isfinite().all():
        raise SubjectError(
            f"{subject.hook} gives values that are not finite for texts of {source.name}",
            hint="Try subject.dtype: float32.",
        )
    about = json.dumps({"names": list(usable), "left_out": left_out}).encode()
    return {
        "vectors": vectors,
        "counts": torch.from_numpy(ranges[:, 1] - ranges[:, 0]),
        "labels": torch.from_numpy(np.array(list(usable.values()), dtype=np.bool_).reshape(len(usable), len(kept))),
        "units": torch.from_numpy(text_of),
        "n_train": torch.tensor(n_train),
        "about": torch.tensor(list(about), dtype=torch.uint8),
    }


def _tokens(examples: Examples, tokenizer: Any, limit: int, name: str) -> tuple[list[list[int]], NDArray[np.int64]]:
    """Return the first token ids of each text, and the tokens that overlap each example: first, one after last."""
    lengths = np.array([len(text) for text in examples.texts], dtype=np.int64)
    is_whole = (examples.spans[:, 1] - examples.spans[:, 0]) == lengths[examples.text_of]
    if not tokenizer.is_fast and not is_whole.all():
        raise SubjectError(
            f"{name} labels words, and this tokenizer does not say where its tokens stand in a text",
            hint="Give tasks that label whole texts, or a model with tokenizer.json.",
        )
    if not examples.texts:
        return [], np.zeros((0, 2), dtype=np.int64)
    encoded = tokenizer(
        examples.texts, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False
    )
    ids = [row[:limit] for row in encoded["input_ids"]]
    ranges = np.zeros((len(examples.text_of), 2), dtype=np.int64)
    offsets = [np.array(row, dtype=np.int64).reshape(-1, 2)[:limit] for row in encoded.get("offset_mapping", ())]
    for i, (text, (start, end)) in enumerate(zip(examples.text_of, examples.spans, strict=True)):
        if is_whole[i]:
            ranges[i] = 0, len(ids[text])
        else:
            starts, ends = offsets[text][:, 0], offsets[text][:, 1]
            ranges[i] = np.searchsorted(ends, start, side="right"), np.searchsorted(starts, end, side="left")
    return ids, ranges


@dataclass(frozen=True)
class _Wanted:
    """Which tokens of which texts."""

    text_of: NDArray[np.int64]
    ranges: NDArray[np.int64]
    bos: int | None


def _activations(context: EvaluationContext, ids: Sequence[list[int]], wanted: _Wanted, tick: Tick) -> Tensor:
    """Return what the SAEs read of each example's tokens: texts of one length run together, padded at the right."""
    subject, _ = context.model()
    counts = wanted.ranges[:, 1] - wanted.ranges[:, 0]
    firsts = np.concatenate([[0], np.cumsum(counts)])
    vectors = torch.empty(int(firsts[-1]), subject.d_model)
    before = [] if wanted.bos is None else [wanted.bos]
    examples_of: dict[int, list[int]] = {}
    for example, text in enumerate(wanted.text_of.tolist()):
        examples_of.setdefault(text, []).append(example)
    # What comes after the last token that is wanted does not change it: it is not run.
    rows = {text: [*before, *ids[text][: wanted.ranges[found, 1].max()]] for text, found in examples_of.items()}
    for batch in _batches(rows):
        longest = len(rows[batch[-1]])
        padded = [rows[text] + [0] * (longest - len(rows[text])) for text in batch]
        acts = context.into(read([subject], torch.tensor(padded, device=subject.device))[0].float()).cpu()
        for row, text in zip(acts, batch, strict=True):
            for example in examples_of[text]:
                first, last = (int(end) + len(before) for end in wanted.ranges[example])
                vectors[firsts[example] : firsts[example + 1]] = row[first:last]
        tick()
    return vectors


def _batches(rows: Mapping[int, list[int]]) -> list[list[int]]:
    """Return texts, the shortest first, in batches of a bounded number of tokens."""
    batches: list[list[int]] = []
    for text in sorted(rows, key=lambda text: len(rows[text])):
        if not batches or (len(batches[-1]) + 1) * len(rows[text]) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(text)
    return batches
