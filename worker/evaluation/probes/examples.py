"""Labelled stretches of texts: divided into those that are fitted on and those for testing, and made into tasks."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.evaluation.probes import ProbesOptions

FEWEST = 5
"""Examples of each label, to fit on and to test with: of fewer nothing is said."""


class Stretch(NamedTuple):
    """Some characters of a text, and their label."""

    start: int
    end: int
    label: str


class LabelledText(NamedTuple):
    """A text, and what is labelled in it: all of it, or words."""

    text: str
    stretches: tuple[Stretch, ...]
    is_test: bool | None = None
    """None: the source does not say, and the hash of the text decides."""


@dataclass(frozen=True)
class Examples:
    """Labelled stretches, those that are fitted on first."""

    texts: list[str]
    text_of: NDArray[np.int64]
    """(n_examples): which text. Examples of one text are in one part."""
    spans: NDArray[np.int64]
    """(n_examples, 2): first character, and the one after the last."""
    labels: list[str]
    n_train: int


def whole_text(text: str, label: str, is_test: bool | None = None) -> LabelledText:
    """Return a text that is labelled as a whole."""
    return LabelledText(text, (Stretch(0, len(text), label),), is_test)


def is_in_share(text: str, share: float) -> bool:
    """Say whether the hash of a text is in the first part of all hashes: whatever other texts there are."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def collect(rows: Iterable[LabelledText], options: ProbesOptions, seed: int) -> Examples:
    """Return at most as many examples of each part as the options say, drawn at random; empty texts are left out.

    A text that stands in both parts is taken out of those that are fitted on.
    """
    parts: tuple[dict[str, list[Stretch]], dict[str, list[Stretch]]] = {}, {}
    for text, stretches, given in rows:
        if text.strip() and stretches:
            is_test = is_in_share(text, options.test_share) if given is None else given
            parts[is_test].setdefault(text, []).extend(stretches)
    train, test = parts
    train = {text: stretches for text, stretches in train.items() if text not in test}
    generator = np.random.default_rng(seed)
    chosen = [_drawn(train, options.train_examples, generator), _drawn(test, options.test_examples, generator)]
    both = [*chosen[0], *chosen[1]]
    numbers = {text: number for number, text in enumerate(dict.fromkeys(text for text, _ in both))}
    return Examples(
        texts=list(numbers),
        text_of=np.array([numbers[text] for text, _ in both], dtype=np.int64),
        spans=np.array([stretch[:2] for _, stretch in both], dtype=np.int64).reshape(-1, 2),
        labels=[stretch.label for _, stretch in both],
        n_train=len(chosen[0]),
    )


def binary_tasks(name: str, labels: Sequence[str], max_classes: int) -> dict[str, NDArray[np.bool_]]:
    """Return which examples are 1, by task: of two labels the second in order, of more each against all others."""
    counts = Counter(labels)
    if len(counts) <= 2:
        return {name: _is_one(labels, max(counts, default=""))}
    frequent = sorted(counts, key=lambda label: (-counts[label], label))[:max_classes]
    return {f"{name}:{label}": _is_one(labels, label) for label in sorted(frequent)}


def why_unusable(is_one: NDArray[np.bool_], n_train: int) -> str | None:
    """Return why nothing can be fitted to a task, or nothing be said of it; None where it can."""
    for part, where in ((is_one[:n_train], "to fit on"), (is_one[n_train:], "to test with")):
        if not len(part):
            return f"there are no examples {where}"
        fewest = int(min(part.sum(), (~part).sum()))
        if not fewest:
            return f"all {len(part)} examples {where} have one label"
        if fewest < FEWEST:
            return f"of one label there are {fewest} examples {where}, fewer than {FEWEST}"
    return None


def _is_one(labels: Sequence[str], one: str) -> NDArray[np.bool_]:
    return np.array([label == one for label in labels], dtype=np.bool_)


def _drawn(texts: dict[str, list[Stretch]], most: int, generator: np.random.Generator) -> list[tuple[str, Stretch]]:
    examples = [(text, stretch) for text, stretches in texts.items() for stretch in stretches]
    order = np.sort(generator.permutation(len(examples))[:most])
    return [examples[i] for i in order]
