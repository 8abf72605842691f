"""The text an evaluation reads: the contexts it measures on, and those before them, which it may fit things on."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from worker.activations.heldout_split import Contexts
from worker.data.token_file import TokenFile


@dataclass(frozen=True)
class Text:
    """Some contexts of a text."""

    ids: Int[Tensor, "n_contexts context"]
    is_measured: Bool[Tensor, "n_contexts context"]
    """Whether a position counts; special tokens do not where `data.special_tokens` is mask."""
    numbers: Int[Tensor, " n_contexts"]
    """Of the contexts within the packed text."""

    def __len__(self) -> int:
        """Return the number of contexts."""
        return len(self.ids)

    def chosen(self, which: slice | Tensor) -> "Text":
        """Return some of the contexts."""
        return Text(self.ids[which], self.is_measured[which], self.numbers[which])


@dataclass(frozen=True)
class HeldoutText:
    """A packed text, divided."""

    tokens: TokenFile
    contexts: Contexts
    name: str
    """As the config names it."""

    @property
    def id(self) -> str:
        """Return what identifies the packed tokens: sha256 over tokenizer, text and limit."""
        return self.tokens.id

    @property
    def heldout(self) -> Text:
        """Return the end of the text, in its order: what is measured on."""
        return self._text(self.contexts.heldout)

    def before(self, n_contexts: int) -> Text:
        """Return up to so many contexts spread evenly over what comes before the held-out part, in the text's order."""
        there = self.contexts.n_training
        return self._text(np.linspace(0, there - 1, min(n_contexts, there)).round().astype(np.int64))

    def _text(self, numbers: NDArray[np.int64]) -> Text:
        ids = self.tokens.contexts(numbers)
        return Text(torch.from_numpy(ids), torch.from_numpy(self.contexts.is_trained(ids)), torch.from_numpy(numbers))
