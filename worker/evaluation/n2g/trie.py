"""A latent's patterns as a trie of reversed tokens, and the activations it predicts on a text."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import ConfigError

_ROOT = -1


class Pattern(NamedTuple):
    """A short text that ends with the token at which the latent is active."""

    tokens: tuple[int | None, ...]
    """Ids in the text's order; None: any token."""
    at_start: bool
    """Whether the first of them must be the first of the document."""
    value: float
    """The latent's activation there."""


@dataclass(frozen=True)
class IndexedText:
    """Contexts of a text, and where each token is in them."""

    ids: NDArray[np.int64]
    """(n_contexts, context)"""
    first: int = 0
    """Column of a document's first token: 1 where a BOS precedes it."""

    @cached_property
    def flat(self) -> NDArray[np.int64]:
        """The ids, contexts after one another."""
        return self.ids.reshape(-1)

    @cached_property
    def columns(self) -> NDArray[np.int64]:
        """How many tokens of its document are before each position; below 0 at a BOS."""
        return np.tile(np.arange(self.ids.shape[1]) - self.first, len(self.ids))

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.flat, kind="stable")
        return order, self.flat[order]

    def positions_of(self, tokens: Iterable[int]) -> NDArray[np.int64]:
        """Return where some distinct tokens are."""
        order, values = self._sorted
        bounds = [(np.searchsorted(values, t), np.searchsorted(values, t, side="right")) for t in tokens]
        return np.concatenate([np.empty(0, dtype=np.int64), *(order[low:high] for low, high in bounds)])


class Predicted(NamedTuple):
    """Where a trie predicts activity, in the order of the text; 0 everywhere else."""

    positions: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass
class _Node:
    token: int | None
    at_start: bool
    parent: int
    sum: float = 0.0
    n: int = 0
    """Patterns that end here; their mean activation is what is predicted."""


@dataclass
class Trie:
    """Patterns of one latent, last token first; a node at which patterns end holds the mean of their activations.

    Prediction walks backwards from a token: the child of that very token is taken before the one of any token, one that
    must be a document's first before one that need not, and a step is never taken back. The first node at which a
    pattern ends gives the value; where the walk finds no child it is 0.
    """

    nodes: list[_Node] = field(default_factory=list)
    _children: dict[int, dict[tuple[int | None, bool], int]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, patterns: Iterable[Pattern]) -> "Trie":
        """Build the trie of some patterns."""
        trie = cls()
        for pattern in patterns:
            trie.insert(pattern)
        return trie

    def insert(self, pattern: Pattern) -> None:
        """Add a pattern."""
        at = _ROOT
        for i in reversed(range(len(pattern.tokens))):
            at = self._child(at, pattern.tokens[i], at_start=pattern.at_start and i == 0)
        self.nodes[at].sum += pattern.value
        self.nodes[at].n += 1

    def predict(self, text: IndexedText) -> Predicted:
        """Predict the activation at every token of a text."""
        positions, values = [np.empty(0, dtype=np.int64)], [np.empty(0)]
        top = self._children.get(_ROOT, {})
        exact = {token for token, _ in top if token is not None}
        anywhere = any(token is None for token, _ in top)
        stack = [(_ROOT, np.arange(len(text.flat)) if anywhere else text.positions_of(exact), 0)]
        while stack:
            parent, at, depth = stack.pop()
            at = at[text.columns[at] >= depth]
            for node, here in self._followed(parent, at, depth, text):
                if node.n:
                    positions.append(here)
                    values.append(np.full(len(here), node.sum / node.n))
                elif len(here):
                    stack.append((self._number(parent, node), here, depth + 1))
        where = np.concatenate(positions)
        order = np.argsort(where)
        return Predicted(where[order], np.concatenate(values)[order])

    def as_json(self) -> list[list[Any]]:
        """Return the nodes, each after its parent: token, at_start, parent's number, sum and number of activations."""
        return [[node.token, node.at_start, node.parent, node.sum, node.n] for node in self.nodes]

    @classmethod
    def from_json(cls, rows: Any) -> "Trie":
        """Return the trie that `as_json` gave.

        Raises:
            ConfigError: it is none.
        """
        trie = cls()
        try:
            for token, at_start, parent, total, n in rows:
                if not _ROOT <= parent < len(trie.nodes) or not isinstance(at_start, bool):
                    raise ValueError("a node comes before its parent")
                node = trie.nodes[trie._child(parent, None if token is None else int(token), at_start=at_start)]
                node.sum, node.n = float(total), int(n)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"this is no trie of a latent: {error}") from error
        return trie

    def _child(self, parent: int, token: int | None, *, at_start: bool) -> int:
        known = self._children.setdefault(parent, {})
        if (token, at_start) not in known:
            known[token, at_start] = len(self.nodes)
            self.nodes.append(_Node(token, at_start, parent))
        return known[token, at_start]

    def _number(self, parent: int, node: _Node) -> int:
        return self._children[parent][node.token, node.at_start]

    def _followed(
        self, parent: int, at: NDArray[np.int64], depth: int, text: IndexedText
    ) -> Iterable[tuple[_Node, NDArray[np.int64]]]:
        """Return to which child each position goes on; those that go nowhere are left out."""
        children = self._children.get(parent, {})
        by_preference = sorted(children, key=lambda key: (key[0] is None, not key[1]))
        for key in by_preference:
            node = self.nodes[children[key]]
            is_first = text.columns[at] == depth
            # Behind a document's first token nothing is left to read: only a pattern that ends there fits.
            fits = ~is_first if not node.n else is_first if node.at_start else np.ones(len(at), dtype=np.bool_)
            if node.token is not None:
                fits &= text.flat[at - depth] == node.token
            yield node, at[fits]
            at = at[~fits]


def load_tries(content: Mapping[str, Any]) -> dict[int, Trie]:
    """Return the tries by latent that a file of the family `n2g` holds.

    Raises:
        ConfigError: it is no such file, or of a later version.
    """
    if content.get("format") != FORMAT or not isinstance(content.get("latents"), Mapping):
        raise ConfigError(f"this is no file of N2G patterns of version {FORMAT}")
    return {int(latent): Trie.from_json(about["trie"]) for latent, about in content["latents"].items()}


FORMAT = 1
"""Of the file of patterns; goes up when its meaning changes."""
