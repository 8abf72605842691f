"""Which vector comes when: the held-out tail, the seeded order of the rest, and the positions that train."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from orchestrator.config import JobConfig
from orchestrator.errors import ConfigError
from worker.tokens import TokenFile

_COUNT_ROWS = 65_536
_LEAST_HELDOUT = 2
"""Vectors: of one alone, or of none, fvu is not defined."""


class Span(NamedTuple):
    """The contexts that hold a stretch of the stream."""

    indices: NDArray[np.int64]
    """Contexts, in the stream's order."""
    skip: int
    """Vectors of the first context that come before the stretch."""


@dataclass
class Contexts:
    """The contexts of a token file as a job sees them.

    The stream numbers trained vectors: epoch e holds vectors [e·n_vectors, (e+1)·n_vectors), the trained positions of
    the training contexts in a permutation seeded by (seed, e). A vector's number alone says where it is.
    """

    tokens: TokenFile
    seed: int
    n_heldout: int
    """Contexts at the end of the file that never train."""
    ignored: NDArray[np.bool_]
    """By token id: whether its position is left out."""
    counts: NDArray[np.int64]
    """Trained positions of each training context."""
    _epoch: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, tokens: TokenFile, config: JobConfig) -> Self:
        """Divide a token file for a job.

        Raises:
            ConfigError: the text is too short; says by how much.
        """
        n_heldout = -(-config.training.heldout_tokens // tokens.stride)
        n_training = tokens.n_contexts - n_heldout
        if n_training < 1:
            raise ConfigError(_too_short(tokens, config, f"{max(0, n_training)} contexts"), hint=_HINT)
        ignored = np.zeros(max(tokens.largest_id, *tokens.special_ids, tokens.bos_id or 0, 0) + 1, dtype=np.bool_)
        if config.data.special_tokens == "mask":
            ignored[list(tokens.special_ids)] = True
        counts = _count(tokens, ignored, n_training)
        if _count_heldout(tokens, ignored, n_heldout) < _LEAST_HELDOUT:
            raise ConfigError(
                f"training.heldout_tokens = {config.training.heldout_tokens}: the end of the text holds no two "
                "positions that may be measured",
                hint="Raise training.heldout_tokens, or set data.special_tokens: train.",
            )
        if counts.sum() < config.training.batch_tokens:
            raise ConfigError(_too_short(tokens, config, f"{counts.sum()} tokens"), hint=_HINT)
        return cls(tokens=tokens, seed=config.training.seed, n_heldout=n_heldout, ignored=ignored, counts=counts)

    @property
    def n_training(self) -> int:
        """Return the number of contexts that train."""
        return len(self.counts)

    @property
    def n_vectors(self) -> int:
        """Return the vectors of one epoch."""
        return int(self.counts.sum())

    @property
    def heldout(self) -> NDArray[np.int64]:
        """Return the contexts that never train."""
        return np.arange(self.n_training, self.n_training + self.n_heldout)

    def is_trained(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say of each position whether its vector is kept."""
        return ~self.ignored[ids]

    def span(self, start: int, stop: int) -> Span:
        """Return the contexts that hold vectors [start, stop) of the stream."""
        parts: list[NDArray[np.int64]] = []
        skip = 0
        for epoch in range(start // self.n_vectors, -(-stop // self.n_vectors)):
            order, ends = self._order(epoch)
            base = epoch * self.n_vectors
            first = int(np.searchsorted(ends, max(start - base, 0), side="right"))
            last = int(np.searchsorted(ends, min(stop - base, self.n_vectors), side="left"))
            if not parts:
                skip = start - base - (int(ends[first - 1]) if first else 0)
            parts.append(order[first : last + 1])
        return Span(np.concatenate(parts), skip)

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return an epoch's contexts in order, and the vectors up to the end of each."""
        if self._epoch is None or self._epoch[0] != epoch:
            bits: Any = np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
            order = np.random.Generator(bits).permutation(self.n_training)
            self._epoch = epoch, order, np.cumsum(self.counts[order])
        return self._epoch[1], self._epoch[2]


def _count(tokens: TokenFile, ignored: NDArray[np.bool_], n_training: int) -> NDArray[np.int64]:
    if not ignored.any():
        return np.full(n_training, tokens.context_length, dtype=np.int64)
    rows = tokens.read()[:n_training]
    before = 0 if tokens.bos_id is None or ignored[tokens.bos_id] else 1
    parts = [(~ignored[rows[i : i + _COUNT_ROWS]]).sum(axis=1) for i in range(0, n_training, _COUNT_ROWS)]
    return np.concatenate(parts).astype(np.int64) + before


def _count_heldout(tokens: TokenFile, ignored: NDArray[np.bool_], n_heldout: int) -> int:
    last = np.arange(tokens.n_contexts - n_heldout, tokens.n_contexts)
    return int((~ignored[tokens.contexts(last)]).sum())


def _too_short(tokens: TokenFile, config: JobConfig, left: str) -> str:
    return (
        f"data.source: {config.data.source} gives {tokens.n_tokens} tokens = {tokens.n_contexts} contexts of "
        f"{tokens.context_length}; with training.heldout_tokens = {config.training.heldout_tokens} only {left} are "
        f"left to train, for batches of {config.training.batch_tokens}"
    )


_HINT = "Give more text, or lower training.heldout_tokens, training.batch_tokens or data.context_length."
