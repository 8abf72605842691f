"""The model as it is, over a text, at a place: what every SAE of that place is held against.

Computed batch by batch, each batch an entry of the store: what a forward pass is restarted from, the cross-entropy of
each token, the next-token probabilities where they fit, and what replacing the activations by zero and by their mean
costs. Never more than one batch of logits is in memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worker.activations.forward import tokens_per_pass
from worker.evaluation.context import EvaluationContext
from worker.evaluation.restart import Restart
from worker.sae.native.kernels import kernels_for
from worker.subject.model import run_patched

_LOGIT_BYTES = {"cpu": 2**28, "cuda": 2**29}
"""Of one batch of logits in float32; about five as large are alive at once."""
_PIECE_BYTES = {"cpu": 2**20, "cuda": 2**29}
"""Of the logits that are normalised at once, of each thread of a CPU: there they and what is made of them stay in its
caches."""
_IDENTITY_CONTEXTS = 4


class Prediction(NamedTuple):
    """Next-token distributions of the clean model, of each position but the last; nats."""

    probabilities: Float[Tensor, "batch predicted vocabulary"]
    neg_entropy: Float[Tensor, "batch predicted"]
    """Σ p ln p."""
    ce: Float[Tensor, "batch predicted"]
    """Cross-entropy of the next token."""


class TokenLosses(NamedTuple):
    """Of each position but the last, in nats per token."""

    ce: Float[Tensor, "batch predicted"]
    """Cross-entropy of the next token."""
    kl: Float[Tensor, "batch predicted"]
    """KL(clean ‖ patched) of the next-token distributions."""


class CleanBatch(NamedTuple):
    """Some contexts, what the clean model makes of them, and what a forward pass is restarted from; on the device."""

    rows: slice
    """Which contexts of the held-out text."""
    ids: Int[Tensor, "batch context"]
    is_measured: Bool[Tensor, "batch context"]
    """Positions that count: activations are replaced there, and left as they are elsewhere."""
    activations: Float[Tensor, "batch context d_model"]
    """Raw, at the hook point."""
    stored: Tensor | None
    """What `Restart` wants."""
    clean: Prediction
    losses: Mapping[str, Float[Tensor, "batch predicted"]]
    """ce, and under zero and mean ablation ce_zero, kl_zero, ce_mean, kl_mean; on the CPU."""


@dataclass(frozen=True)
class CleanPass:
    """The clean model over the held-out text of a context, batch by batch."""

    context: EvaluationContext

    @cached_property
    def restart(self) -> Restart:
        """How a forward pass is restarted at the place."""
        return Restart.of(self.context.model()[0])

    @cached_property
    def mean(self) -> Float[Tensor, " d_model"]:
        """The mean activation, over the positions that count."""
        return self.context.vectors.mean(0, dtype=torch.float64).float()

    @cached_property
    def is_counted(self) -> Bool[Tensor, "n_contexts predicted"]:
        """Which predictions count: those of measured positions that have a next token; on the CPU."""
        return self.context.model()[1].heldout.is_measured[:, :-1]

    @cached_property
    def size(self) -> int:
        """Contexts of a batch."""
        subject, text = self.context.model()
        length = text.heldout.ids.shape[1]
        within = _LOGIT_BYTES[self.context.device.type] // (4 * subject.vocabulary)
        return max(1, min(tokens_per_pass(subject, length), within) // length)

    @cached_property
    def keeps_probabilities(self) -> bool:
        """Whether the next-token probabilities of the whole text fit on disk; else they are computed for each use."""
        subject, _ = self.context.model()
        return self.is_counted.numel() * subject.vocabulary * 4 <= self.context.clean_pass_bytes

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return -(-len(self.is_counted) // self.size)

    def batches(self, phase: str) -> Iterator[CleanBatch]:
        """Yield the batches in the text's order; what is not in the store is computed, and kept there."""
        n_contexts = len(self.is_counted)
        for number, first in enumerate(range(0, n_contexts, self.size)):
            self.context.progress(phase, number / self.n_batches)
            rows = slice(first, min(first + self.size, n_contexts))
            how = {"probabilities": self.keeps_probabilities, "kernels": kernels_for() is not None}
            of = self.context.of("clean pass", version=2, contexts=[rows.start, rows.stop], **how)
            yield self._batch(rows, self.context.store.get(of, partial(self._computed, rows)))

    def predicted(self, batch: CleanBatch, replaced: Float[Tensor, "batch context d_model"]) -> Prediction:
        """Return what the model predicts with something in place of the activations of a batch."""
        mask = batch.is_measured.unsqueeze(-1)
        return predict(self.restart(batch.ids, batch.stored, lambda x: torch.where(mask, replaced, x)), batch.ids)

    def losses(self, batch: CleanBatch, reconstructed: Float[Tensor, "batch context d_model"]) -> TokenLosses:
        """Return what it costs to put a reconstruction in place of the activations of a batch."""
        mask = batch.is_measured.unsqueeze(-1)
        logits = self.restart(batch.ids, batch.stored, lambda x: torch.where(mask, reconstructed, x))
        return token_losses(logits, batch.ids, batch.clean)

    @cached_property
    def identity_error(self) -> float:
        """The largest change of a token's cross-entropy, in nats, that x̂ = x makes, against the model run whole.

        Measured on the first contexts; rounding alone, unless the restart is wrong.
        """

        def compute() -> dict[str, Tensor]:
            batch = self._batch(slice(0, min(_IDENTITY_CONTEXTS, len(self.is_counted))), {})
            subject, _ = self.context.model()
            whole = predict(run_patched([subject], batch.ids, [lambda x: x]), batch.ids)
            return {"error": (self.losses(batch, batch.activations).ce - whole.ce).abs().max()}

        return float(self.context.store.get(self.context.of("identity", version=1), compute)["error"])

    def _computed(self, rows: slice) -> dict[str, Tensor]:
        batch = self._batch(rows, {})
        found: dict[str, Tensor] = batch.clean._asdict() if self.keeps_probabilities else {"ce": batch.clean.ce}
        for name, value in (("zero", torch.zeros_like(self.mean)), ("mean", self.mean)):
            ce, kl = self.losses(batch, value.expand_as(batch.activations))
            found |= {f"ce_{name}": ce, f"kl_{name}": kl}
        if batch.stored is not None and not self.restart.is_at_hook:
            found["stored"] = batch.stored
        return found

    def _batch(self, rows: slice, kept: Mapping[str, Tensor]) -> CleanBatch:
        """Return a batch with what is kept of it, and what is not kept computed."""
        subject, text = self.context.model()
        chosen = text.heldout.chosen(rows)
        device = self.context.device
        ids, is_measured = chosen.ids.to(device), chosen.is_measured.to(device)
        activations = self.context.heldout_activations[rows].to(device)
        if self.restart.is_at_hook:
            stored: Tensor | None = activations.to(subject.dtype)
        else:
            stored = kept["stored"].to(device) if "stored" in kept else self.restart.capture(ids)
        if "probabilities" in kept:
            clean = Prediction(*(kept[name].to(device) for name in Prediction._fields))
        else:
            clean = predict(self.restart(ids, stored, lambda x: x), ids)
        losses = {name: value for name, value in kept.items() if name.startswith(("ce", "kl"))}
        return CleanBatch(rows, ids, is_measured, activations, stored, clean, losses)


def predict(logits: Float[Tensor, "batch context vocabulary"], ids: Int[Tensor, "batch context"]) -> Prediction:
    """Return what logits predict, by a log-softmax in float32."""
    if kernels := kernels_for(logits):
        return Prediction(*kernels.predict(logits, ids.contiguous()))
    n_contexts, length, vocabulary = logits.shape
    probabilities = logits.new_empty((n_contexts, length - 1, vocabulary), dtype=torch.float32)
    neg_entropy, ce = logits.new_empty((2, n_contexts, length - 1), dtype=torch.float32)
    for piece in _pieces(logits):
        logs = _log_softmax(logits, piece)
        ce[piece] = _at_next(logs, ids, piece)
        torch.exp(logs, out=probabilities[piece])
        neg_entropy[piece] = _mean_of(logs, probabilities[piece])
    return Prediction(probabilities, neg_entropy, ce)


def token_losses(
    logits: Float[Tensor, "batch context vocabulary"], ids: Int[Tensor, "batch context"], clean: Prediction
) -> TokenLosses:
    """Return cross-entropy and KL(clean ‖ these) of each position but the last: log-softmax in float32, nats.

    KL = Σ p ln p − Σ p ln q, p the clean probabilities: 0 bit for bit where the logits are the clean ones.
    """
    if kernels := kernels_for(logits, clean.probabilities, clean.neg_entropy):
        return TokenLosses(*kernels.token_losses(logits, ids.contiguous(), clean.probabilities, clean.neg_entropy))
    ce, kl = logits.new_empty((2, *clean.ce.shape), dtype=torch.float32)
    for piece in _pieces(logits):
        logs = _log_softmax(logits, piece)
        ce[piece] = _at_next(logs, ids, piece)
        kl[piece] = clean.neg_entropy[piece] - _mean_of(logs, clean.probabilities[piece])
    return TokenLosses(ce, kl)


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
    return _PIECE_BYTES[device.type] * (torch.get_num_threads() if device.type == "cpu" else 1)


def _log_softmax(logits: Tensor, piece: _Piece) -> Tensor:
    return logits[piece].float().log_softmax(-1)


def _at_next(logs: Tensor, ids: Tensor, piece: _Piece) -> Tensor:
    contexts, positions = piece
    following = ids[contexts, positions.start + 1 : positions.stop + 1]
    return -logs.gather(-1, following.unsqueeze(-1)).squeeze(-1)


def _mean_of(logs: Tensor, probabilities: Tensor) -> Tensor:
    """Return Σ p · log; the logs are overwritten with the products, which so need no memory of their own."""
    return logs.mul_(probabilities).sum(-1)
