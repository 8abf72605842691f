"""Excerpts of a text around activations of a latent, and some around any token."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.evaluation.explanation import ExplanationOptions
from worker.evaluation.explanation.prompts import Excerpt
from worker.evaluation.heldout_text import Text
from worker.evaluation.n2g.latent_acts import Firings


class LatentExcerpts(NamedTuple):
    """What an explainer is given of one latent."""

    latent: int
    shown: list[Excerpt]
    """Before the held-out part: around its largest activations, and around some drawn evenly."""
    scored: list[Excerpt]
    """Of the held-out part: around activations drawn evenly, and around any tokens. Empty: it is never active there."""


class ExcerptText:
    """A text, cut into excerpts within its contexts."""

    def __init__(self, text: Text, tokenizer: Any, *, first: int, length: int) -> None:
        """Take the text, the column of a document's first token, and the tokens of an excerpt."""
        self._text, self._tokenizer = text, tokenizer
        self._width = text.ids.shape[1]
        self._first, self._length = first, min(length, self._width - first)

    @property
    def measured(self) -> NDArray[np.int64]:
        """Return the positions that count."""
        return self._text.is_measured.flatten().numpy().nonzero()[0]

    def around(self, positions: NDArray[Any], active: Firings) -> list[Excerpt]:
        """Return the excerpts in whose last quarter some positions are, each excerpt once."""
        starts = dict.fromkeys(self._start(int(position)) for position in positions)
        return [self._excerpt(start, active) for start in starts]

    def _start(self, position: int) -> int:
        row, column = divmod(position, self._width)
        wanted = column - 3 * self._length // 4
        within = min(max(wanted, self._first), self._width - self._length)
        return row * self._width + within

    def _excerpt(self, start: int, active: Firings) -> Excerpt:
        ids = self._text.ids.flatten()[start : start + self._length].tolist()
        values = np.zeros(self._length, dtype=np.float32)
        low, high = np.searchsorted(active.positions, [start, start + self._length])
        values[active.positions[low:high] - start] = active.values[low:high]
        return Excerpt([self._tokenizer.decode([token]) for token in ids], values)


def latent_excerpts(
    latent: int,
    shown: tuple[ExcerptText, Firings],
    scored: tuple[ExcerptText, Firings],
    options: ExplanationOptions,
    chance: np.random.Generator,
) -> LatentExcerpts:
    """Draw the excerpts of one latent, whose activations on both texts are given in the order of the text."""
    text, active = shown
    n_top = options.shown_excerpts - options.shown_excerpts // 2
    top = active.positions[np.argsort(-active.values, kind="stable")[:n_top]]
    at_random = _drawn(active.positions, options.shown_excerpts // 2, chance)
    heldout, active_there = scored
    n_active = options.scored_excerpts - options.scored_excerpts // 2
    positions = _drawn(active_there.positions, n_active, chance)
    anywhere = _drawn(heldout.measured, options.scored_excerpts // 2, chance)
    return LatentExcerpts(
        latent,
        text.around(np.concatenate([top, at_random]), active),
        heldout.around(np.concatenate([positions, anywhere]), active_there) if len(positions) else [],
    )


def _drawn(positions: NDArray[Any], n: int, chance: np.random.Generator) -> NDArray[Any]:
    return chance.choice(positions, size=min(n, len(positions)), replace=False)
