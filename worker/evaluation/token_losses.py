"""Cross-entropy of the next token, and KL from what the clean model predicts, of each position of some contexts.

Where logits are the product of the last hidden state h and the unembedding W, in float32, they are made in pieces that
stay in the caches, and none are kept: KL(p ‖ q) = Σ p (l − l') − ln Σ e^l + ln Σ e^l' and Σ p l = h · Σ p W + Σ p b, so
that one row for each token, Σ p W, stands for its probabilities. `WholeLogits` takes any model's logits as they come.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from worker.evaluation.restart import Restart
from worker.sae.native.kernels import kernels_for
from worker.subject.model import Replace

_WHOLE_BYTES = {"cpu": 2**20, "cuda": 2**29}
"""Of the logits that are normalised at once, of each thread of a CPU: there they and what is made of them stay in its
caches."""
_PIECE_BYTES = {"cpu": 2**24, "cuda": 2**29}
"""Of the logits that are made at once: fewer rows make the product slower."""


class TokenLosses(NamedTuple):
    """Of each position but the last, in nats per token."""

    ce: Float[Tensor, "batch predicted"]
    """Cross-entropy of the next token."""
    kl: Float[Tensor, "batch predicted"]
    """KL(clean ‖ patched) of the next-token distributions."""


Predicted = Mapping[str, Tensor]
"""What losses need of the clean model's predictions, (batch, predicted, ...) each: `ce`, and what a way `keeps`."""


@dataclass(frozen=True)
class HeadInPieces:
    """Of models whose logits are linear in what the head reads: outputs are (batch, predicted, width)."""

    restart: Restart
    keeps: ClassVar[tuple[str, ...]] = ("mean_row", "mean_logit", "normaliser")
    """Σ p W (batch, predicted, width); h · Σ p W in float64; ln Σ e^l."""

    @property
    def bytes_per_token(self) -> int:
        """Return what `Predicted` takes."""
        return 4 * self._weight.shape[1] + 16

    def outputs(self, ids: Tensor, stored: Tensor | None, replacement: Replace) -> Tensor:
        """Return what the head reads at each position but the last."""
        return self.restart.hidden(ids, stored, replacement)[:, :-1]

    def predicted(self, outputs: Tensor, ids: Tensor) -> Predicted:
        """Return what these outputs predict."""
        found = []
        for logits in self._logits(outputs):
            normaliser = softmax_(logits)
            found.append((logits @ self._weight, normaliser))
        mean_row, normaliser = (torch.cat(parts) for parts in zip(*found, strict=True))
        mean_row, normaliser = mean_row.view(outputs.shape), normaliser.view(outputs.shape[:2])
        mean_logit = (outputs * mean_row).sum(-1, dtype=torch.float64)
        ce = normaliser - self._next_logit(outputs, ids)
        return {"mean_row": mean_row, "mean_logit": mean_logit, "normaliser": normaliser, "ce": ce}

    def losses(self, outputs: Tensor, ids: Tensor, clean: Predicted, *, of: Tensor | None = None) -> TokenLosses:
        """Return what these outputs cost: KL is 0 bit for bit where they are the clean ones."""
        normaliser = torch.cat([log_sum_exp(logits) for logits in self._logits(outputs)]).view(outputs.shape[:2])
        if of is not None:
            outputs, normaliser = outputs[of], normaliser[of]
        lost = clean["mean_logit"] - (outputs * clean["mean_row"]).sum(-1, dtype=torch.float64)
        kl = lost - (clean["normaliser"] - normaliser)
        return TokenLosses(normaliser - self._next_logit(outputs, ids), kl.float())

    @property
    def _weight(self) -> Float[Tensor, "vocabulary width"]:
        weight: Tensor = self.restart.head.weight
        return weight

    def _logits(self, outputs: Tensor) -> Iterator[Float[Tensor, "rows vocabulary"]]:
        rows = outputs.flatten(0, 1)
        size = max(1, _PIECE_BYTES[rows.device.type] // (4 * len(self._weight)))
        for piece in torch.split(rows, size):
            yield functional.linear(piece, self._weight, self.restart.head.bias)

    def _next_logit(self, outputs: Tensor, ids: Tensor) -> Float[Tensor, "batch predicted"]:
        following, bias = ids[:, 1:], self.restart.head.bias
        found = (outputs * functional.embedding(following, self._weight)).sum(-1, dtype=torch.float64)
        return (found if bias is None else found + bias[following]).float()


@dataclass(frozen=True)
class WholeLogits:
    """Of any model: outputs are its logits (batch, context, vocabulary)."""

    restart: Restart
    keeps: ClassVar[tuple[str, ...]] = ("probabilities", "neg_entropy")
    """Of the next token, (batch, predicted, vocabulary); Σ p ln p."""

    @property
    def bytes_per_token(self) -> int:
        """Return what `Predicted` takes."""
        return 4 * self.restart.subject.vocabulary + 8

    def outputs(self, ids: Tensor, stored: Tensor | None, replacement: Replace) -> Tensor:
        """Return the logits."""
        return self.restart(ids, stored, replacement)

    @staticmethod
    def predicted(outputs: Tensor, ids: Tensor) -> Predicted:
        """Return what these logits predict, by a log-softmax in float32."""
        n_contexts, length, vocabulary = outputs.shape
        probabilities = outputs.new_empty((n_contexts, length - 1, vocabulary), dtype=torch.float32)
        neg_entropy, ce = outputs.new_empty((2, n_contexts, length - 1), dtype=torch.float32)
        for piece in _pieces(outputs):
            logs = _log_softmax(outputs, piece)
            ce[piece] = _at_next(logs, ids, piece)
            torch.exp(logs, out=probabilities[piece])
            neg_entropy[piece] = _mean_of(logs, probabilities[piece])
        return {"probabilities": probabilities, "neg_entropy": neg_entropy, "ce": ce}

    @staticmethod
    def losses(outputs: Tensor, ids: Tensor, clean: Predicted, *, of: Tensor | None = None) -> TokenLosses:
        """Return what these logits cost: log-softmax in float32.

        KL = Σ p ln p − Σ p ln q, p the clean probabilities: 0 bit for bit where the logits are the clean ones.
        """
        logits = outputs if of is None else outputs[of]
        ce, kl = logits.new_empty((2, *clean["neg_entropy"].shape), dtype=torch.float32)
        for piece in _pieces(logits):
            logs = _log_softmax(logits, piece)
            ce[piece] = _at_next(logs, ids, piece)
            kl[piece] = clean["neg_entropy"][piece] - _mean_of(logs, clean["probabilities"][piece])
        return TokenLosses(ce, kl)


Losses = HeadInPieces | WholeLogits
"""A way from activations to losses.

`outputs` is what the model makes of some contexts, (batch, ...), restarted as by `Restart`; `predicted` what those of
the clean model predict; `losses` what outputs cost, where `of` (batch) may say which of them is each context's.
"""


def losses_of(restart: Restart) -> Losses:
    """Return the faster way that a model allows."""
    return HeadInPieces(restart) if restart.has_linear_head else WholeLogits(restart)


def log_sum_exp(logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, " rows"]:
    """Return ln Σ e^l of each row."""
    if kernels := kernels_for(logits):
        return kernels.log_sum_exp(logits)
    return logits.logsumexp(-1)


def softmax_(logits: Float[Tensor, "rows vocabulary"]) -> Float[Tensor, " rows"]:
    """Put the probabilities in place of each row; return what `log_sum_exp` does of the row that was there."""
    if kernels := kernels_for(logits):
        return kernels.softmax_(logits)
    normaliser = logits.logsumexp(-1)
    logits.sub_(normaliser[:, None]).exp_()
    return normaliser


_Piece = tuple[slice, slice]
"""Contexts, and positions that have a next token."""


def _pieces(logits: Tensor) -> Iterator[_Piece]:
    """Yield parts that are whole contexts, or of one context; together all positions but the last of each."""
    n_contexts, length, vocabulary = logits.shape
    within = max(1, _piece_bytes(logits.device) // (4 * vocabulary))
    contexts, positions = max(1, within // length), min(within, length)
    for first in range(0, n_contexts, contexts):
        for start in range(0, length - 1, positions):
            yield slice(first, first + contexts), slice(start, min(start + positions, length - 1))


def _piece_bytes(device: torch.device) -> int:
    return _WHOLE_BYTES[device.type] * (torch.get_num_threads() if device.type == "cpu" else 1)


def _log_softmax(logits: Tensor, piece: _Piece) -> Tensor:
    return logits[piece].float().log_softmax(-1)


def _at_next(logs: Tensor, ids: Tensor, piece: _Piece) -> Tensor:
    contexts, positions = piece
    following = ids[contexts, positions.start + 1 : positions.stop + 1]
    return -logs.gather(-1, following.unsqueeze(-1)).squeeze(-1)


def _mean_of(logs: Tensor, probabilities: Tensor) -> Tensor:
    """Return Σ p · log; the logs are overwritten with the products, which so need no memory of their own."""
    return logs.mul_(probabilities).sum(-1)
