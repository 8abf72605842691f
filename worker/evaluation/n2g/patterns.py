"""Neuron to graph: what of the text before an activation the latent needs. One pattern for each activation.

Source: paper section 4.3, after Foote et al. (Neuron to Graph). For all drawn activations at once: the text is cut off
behind each; the shortest end of it that keeps a share of the activation is found; a pad token before that end tells
whether it must be at a document's start; a pad token in the place of each of its tokens tells which may be any token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.evaluation.n2g import N2gOptions
from worker.evaluation.n2g.short_texts import ShortTexts, Tokens
from worker.evaluation.n2g.trie import Pattern

_FIRST_LENGTHS = 4
"""Ends of 1 to 4 tokens are tried together, then those of 5 and 6, 7 to 9, 10 to 13, and so on, where still needed."""


class Example(NamedTuple):
    """An activation of a latent."""

    latent: int
    tokens: Tokens
    """The document up to the token at which it is active."""
    value: float


class _End(NamedTuple):
    """The shortest end of an example's tokens that keeps enough of the activation."""

    tokens: Tokens
    value: float


def find_patterns(texts: ShortTexts, examples: Sequence[Example], options: N2gOptions, *, pad: int) -> list[Pattern]:
    """Return the pattern of each example, in their order."""
    latents = np.array([example.latent for example in examples], dtype=np.int64)
    ends = _shortest_ends(texts, examples, latents, options.threshold)
    at_start = _needs_start(texts, examples, ends, latents, threshold=options.threshold, pad=pad)
    numbers, places = _pairs([len(end.tokens) for end in ends])
    replaced = [
        _with_pad(ends[i].tokens, place, pad) for i, place in zip(numbers.tolist(), places.tolist(), strict=True)
    ]
    values = texts.activations(replaced, latents[numbers], share=0.8)
    kept = values / np.array([end.value for end in ends])[numbers]
    is_any = 1 - kept < options.saliency
    rows = np.split(is_any, np.cumsum([len(end.tokens) for end in ends])[:-1]) if ends else []
    return [
        Pattern(
            tuple(None if any_ else int(t) for t, any_ in zip(end.tokens, row, strict=True)), bool(start), end.value
        )
        for end, row, start in zip(ends, rows, at_start, strict=True)
    ]


def _shortest_ends(
    texts: ShortTexts, examples: Sequence[Example], latents: NDArray[np.int64], threshold: float
) -> list[_End]:
    found: dict[int, _End] = {}
    tried, to = 0, _FIRST_LENGTHS
    left = np.arange(len(examples))
    while len(left):
        counts = [min(to, len(examples[i].tokens)) - tried for i in left.tolist()]
        numbers, more = _pairs(counts)
        numbers, lengths = left[numbers], tried + 1 + more
        ends = [examples[i].tokens[-length:] for i, length in zip(numbers.tolist(), lengths.tolist(), strict=True)]
        share = 0.7 * (1 - len(left) / len(examples))
        values = texts.activations(ends, latents[numbers], share=share)
        for i, end, value in zip(numbers.tolist(), ends, values.tolist(), strict=True):
            if i not in found and value >= threshold * examples[i].value:
                found[i] = _End(end, value)
        left = np.array([i for i in left.tolist() if i not in found and len(examples[i].tokens) > to], dtype=np.int64)
        tried, to = to, to + to // 2
    # Where no end keeps enough, be it for rounding, the whole document is the pattern.
    return [found.get(i) or _End(example.tokens, example.value) for i, example in enumerate(examples)]


def _needs_start(
    texts: ShortTexts,
    examples: Sequence[Example],
    ends: Sequence[_End],
    latents: NDArray[np.int64],
    *,
    threshold: float,
    pad: int,
) -> NDArray[np.bool_]:
    """Say of each end whether too little of the activation is left with a token before it.

    An end as long as the model can read cannot be tried so: such ends do not need the start.
    """
    longest = texts.longest
    tried = np.array([i for i, end in enumerate(ends) if longest is None or len(end.tokens) < longest], dtype=np.int64)
    padded = [np.concatenate([[pad], ends[i].tokens]) for i in tried]
    values = texts.activations(padded, latents[tried], share=0.7)
    needs = np.zeros(len(ends), dtype=np.bool_)
    needs[tried] = values < threshold * np.array([examples[i].value for i in tried])
    return needs


def _pairs(counts: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for counts such as 2, 3 the numbers 0 0 1 1 1, and 0 1 0 1 2."""
    numbers = np.repeat(np.arange(len(counts)), counts)
    firsts = np.cumsum(counts) - counts
    return numbers, np.arange(len(numbers)) - np.repeat(firsts, counts)


def _with_pad(tokens: Tokens, place: int, pad: int) -> Tokens:
    changed = tokens.copy()
    changed[place] = pad
    return changed
