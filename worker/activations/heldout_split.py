"""Divide a text: the held-out contexts at its end, the seeded order of the others, and the positions that train."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.job import JobConfig
from orchestrator.errors import ConfigError
from orchestrator.formatting import named
from worker.data.token_file import TokenFile

_COUNT_ROWS = 65_536
_MIN_HELDOUT = 2
"""Vectors: of one alone, or of none, fvu is not defined."""


class Epoch(NamedTuple):
    """One pass over the training contexts."""

    order: NDArray[np.int64]
    """Contexts, in the order the stream reads them."""
    ends: NDArray[np.int64]
    """Vectors up to and with each context, in that order."""


@dataclass
class Contexts:
    """The contexts of a token file, divided and ordered for a job.

    The stream numbers trained vectors: epoch e holds vectors [e·n_vectors, (e+1)·n_vectors), the trained positions of
    the training contexts in a permutation seeded by (seed, e). A vector's number alone says where it is. Contexts are
    numbered the same way: epoch e reads number e·n_training first.
    """

    tokens: TokenFile
    seed: int
    n_heldout: int
    """Contexts at the end of the file that never train."""
    ignored: NDArray[np.bool_]
    """By token id: whether its position is left out."""
    counts: NDArray[np.int64]
    """Trained positions of each training context."""
    _epochs: dict[int, Epoch] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, tokens: TokenFile, config: JobConfig) -> Self:
        """Divide a token file for a job.

        Raises:
            ConfigError: the text is too short; says by how much.
        """
        n_heldout = -(-config.training.heldout_tokens // tokens.stride)
        n_training = tokens.n_contexts - n_heldout
        if n_training < 1:
            raise ConfigError(
                f"{_size(tokens, config)}: too few for {config.training.heldout_tokens} held-out tokens and a context "
                "before them",
                hint="Give more text, or hold out fewer tokens: training.heldout_tokens, or --tokens of a command.",
            )
        ignored = np.zeros(max(tokens.largest_id, *tokens.special_ids, tokens.bos_id or 0, 0) + 1, dtype=np.bool_)
        if config.data.special_tokens == "mask":
            ignored[list(tokens.special_ids)] = True
        counts = _count(tokens, ignored, n_training)
        if _count_heldout(tokens, ignored, n_heldout) < _MIN_HELDOUT:
            raise ConfigError(
                f"training.heldout_tokens = {config.training.heldout_tokens}: the end of the text holds no two "
                "positions that may be measured",
                hint="Raise training.heldout_tokens, or set data.special_tokens: train.",
            )
        if counts.sum() < config.training.batch_tokens:
            raise _too_short(tokens, config, int(counts.sum()))
        return cls(tokens=tokens, seed=config.data.seed, n_heldout=n_heldout, ignored=ignored, counts=counts)

    @property
    def n_training(self) -> int:
        """Return the number of contexts that train."""
        return len(self.counts)

    @property
    def n_vectors(self) -> int:
        """Return the vectors of one epoch."""
        return int(self.counts.sum())

    @property
    def captured_per_vector(self) -> float:
        """Return the tokens the subject reads for one trained vector: above 1 where special tokens are left out."""
        return self.n_training * self.tokens.context_length / self.n_vectors

    @property
    def heldout(self) -> NDArray[np.int64]:
        """Return the contexts that never train."""
        return np.arange(self.n_training, self.n_training + self.n_heldout)

    def is_trained(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say of each position whether its vector is kept."""
        return ~self.ignored[ids]

    def number_at(self, vector: int) -> int:
        """Return the number of the context that holds a vector of the stream."""
        epoch, within = divmod(vector, self.n_vectors)
        return epoch * self.n_training + int(np.searchsorted(self._epoch(epoch).ends, within, side="right"))

    def first_vector(self, number: int) -> int:
        """Return how many vectors come before a context of the stream."""
        epoch, within = divmod(number, self.n_training)
        return epoch * self.n_vectors + (int(self._epoch(epoch).ends[within - 1]) if within else 0)

    def run(self, number: int, n: int) -> NDArray[np.int64]:
        """Return n contexts of the stream in its order, beginning with a given one, across epochs where needed."""
        parts: list[NDArray[np.int64]] = []
        stop = number + n
        while number < stop:
            epoch, within = divmod(number, self.n_training)
            parts.append(self._epoch(epoch).order[within : within + stop - number])
            number += len(parts[-1])
        return np.concatenate(parts)

    def _epoch(self, epoch: int) -> Epoch:
        if epoch not in self._epochs:
            bits: Any = np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
            order = np.random.Generator(bits).permutation(self.n_training)
            # A forward batch may lie across the border of two epochs: the one before is kept, too.
            previous = {number: known for number, known in self._epochs.items() if number == epoch - 1}
            self._epochs = previous | {epoch: Epoch(order, np.cumsum(self.counts[order]))}
        return self._epochs[epoch]


def _count(tokens: TokenFile, ignored: NDArray[np.bool_], n_training: int) -> NDArray[np.int64]:
    if not ignored.any():
        return np.full(n_training, tokens.context_length, dtype=np.int64)
    rows = tokens.read()[:n_training]
    n_bos = 0 if tokens.bos_id is None or ignored[tokens.bos_id] else 1
    parts = [(~ignored[rows[i : i + _COUNT_ROWS]]).sum(axis=1) for i in range(0, n_training, _COUNT_ROWS)]
    return np.concatenate(parts).astype(np.int64) + n_bos


def _count_heldout(tokens: TokenFile, ignored: NDArray[np.bool_], n_heldout: int) -> int:
    last = np.arange(tokens.n_contexts - n_heldout, tokens.n_contexts)
    return int((~ignored[tokens.contexts(last)]).sum())


def _size(tokens: TokenFile, config: JobConfig) -> str:
    n, each = tokens.n_contexts, tokens.context_length
    return (
        f"data.source: {config.data.source} gives {named(tokens.n_tokens, 'token')} = {named(n, 'context')} of {each}"
    )


def _too_short(tokens: TokenFile, config: JobConfig, left: int) -> ConfigError:
    training = config.training
    message = (
        f"{_size(tokens, config)}; with training.heldout_tokens = {training.heldout_tokens} only {left} tokens are "
        f"left to train, for batches of {training.batch_tokens}"
    )
    hint = "Give more text, or lower training.heldout_tokens, training.batch_tokens or data.context_length."
    return ConfigError(message, hint=hint)
