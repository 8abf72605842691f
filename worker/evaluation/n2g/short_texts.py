"""Run many short texts through the model, and read a latent at the last token of each."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from worker.activations.forward import tokens_per_pass
from worker.evaluation.n2g.latent_acts import activation_of_each
from worker.sae.inference import InferenceSae
from worker.subject.model import Subject, read

Tokens = NDArray[np.int64]


class ShortTexts:
    """Texts of the lengths that occur, batched by length: padding is on the right, where a causal model ignores it."""

    def __init__(
        self, subject: Subject, sae: InferenceSae, *, bos: int | None, on_progress: Callable[[float], None]
    ) -> None:
        """Take the model and the SAE. `bos` goes before every text, where the SAE reads its contexts so."""
        self._subject, self._sae = subject, sae
        self._before = np.array([] if bos is None else [bos], dtype=np.int64)
        self._on_progress = on_progress
        self.tokens_run = 0
        """Tokens the model has read, padding among them."""

    @property
    def longest(self) -> int | None:
        """Return the most tokens a text may have; None: any number."""
        most = self._subject.max_context
        return None if most is None else most - len(self._before)

    def activations(self, texts: Sequence[Tokens], latents: NDArray[np.int64], *, share: float) -> NDArray[np.float32]:
        """Return for each text the activation of its latent at its last token; `share` of the work was done before."""
        lengths = np.array([len(text) for text in texts], dtype=np.int64) + len(self._before)
        order = np.argsort(lengths, kind="stable")
        values = np.empty(len(texts), dtype=np.float32)
        most = tokens_per_pass(self._subject, int(lengths.max(initial=1)))
        start = 0
        while start < len(order):
            self._on_progress(share)
            rows = _fitting(lengths[order], start, most)
            which = order[start : start + rows]
            values[which] = self._batch([texts[i] for i in which], lengths[which], latents[which])
            start += rows
        return values

    def _batch(
        self, texts: Sequence[Tokens], lengths: NDArray[np.int64], latents: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        ids = np.zeros((len(texts), lengths[-1]), dtype=np.int64)
        ids[:, : len(self._before)] = self._before
        for row, text, length in zip(ids, texts, lengths, strict=True):
            row[len(self._before) : length] = text
        self.tokens_run += ids.size
        found = read([self._subject], torch.from_numpy(ids).to(self._subject.device))[0]
        last = torch.from_numpy(lengths - 1).to(found.device)
        x = found[torch.arange(len(ids), device=found.device), last].float().to(self._sae.device)
        return activation_of_each(self._sae, x, torch.from_numpy(latents)).numpy()


def _fitting(lengths: NDArray[np.int64], start: int, most: int) -> int:
    """Return how many texts from one on, shorter ones first, fit a batch once they are as long as the last."""
    sizes = lengths[start : start + most] * np.arange(1, min(most, len(lengths) - start) + 1)
    return max(1, int(np.searchsorted(sizes, most, side="right")))
