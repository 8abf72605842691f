"""The model as it is, over a text, at a place: what every SAE of that place is held against.

Computed batch by batch, some batches an entry of the store: what a forward pass is restarted from, the cross-entropy of
each token, what KL needs of its predictions where that fits, and what replacing the activations by zero and by their
mean costs. Never more than one batch of logits is in memory.
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
from worker.evaluation.token_losses import Losses, Predicted, TokenLosses, WholeLogits, losses_of
from worker.sae.native.kernels import kernels_for
from worker.subject.model import run_patched

_LOGIT_BYTES = {"cpu": 2**28, "cuda": 2**29}
"""Of one batch of logits in float32; about five as large are alive at once."""
_ENTRY_BYTES = 2**26
"""Of an entry of the store, about, where one batch has no more: each costs five flushes of the disk."""
_IDENTITY_CONTEXTS = 4


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
    clean: Predicted
    losses: Mapping[str, Float[Tensor, "batch predicted"]]
    """ce, and under zero and mean ablation ce_zero, kl_zero, ce_mean, kl_mean; on the CPU."""


@dataclass(frozen=True)
class CleanPass:
    """The clean model over the held-out text of a context, batch by batch."""

    context: EvaluationContext

    @cached_property
    def restart(self) -> Restart:
        """How a forward pass is restarted at the place."""
        return self.context.restart

    @cached_property
    def way(self) -> Losses:
        """How losses are computed."""
        return losses_of(self.restart)

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
    def keeps_predictions(self) -> bool:
        """Whether what losses need of the clean predictions fits on disk; else it is computed for each use."""
        return self.is_counted.numel() * self.way.bytes_per_token <= self.context.clean_pass_bytes

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return -(-len(self.is_counted) // self.size)

    def batches(self, phase: str) -> Iterator[CleanBatch]:
        """Yield the batches in the text's order; what is not in the store is computed, and kept there."""
        for entry in self._entries():
            kept = self._kept(entry, phase)
            for rows in self._batches_of(entry, phase):
                yield self._batch(rows, {name: value[_within(rows, entry)] for name, value in kept.items()})

    def predicted(self, batch: CleanBatch, replaced: Float[Tensor, "batch context d_model"]) -> Predicted:
        """Return what the model predicts with something in place of the activations of a batch."""
        return self.way.predicted(self._outputs(batch, replaced), batch.ids)

    def losses(self, batch: CleanBatch, reconstructed: Float[Tensor, "batch context d_model"]) -> TokenLosses:
        """Return what it costs to put a reconstruction in place of the activations of a batch."""
        return self.way.losses(self._outputs(batch, reconstructed), batch.ids, batch.clean)

    @cached_property
    def identity_error(self) -> float:
        """The largest change of a token's cross-entropy, in nats, that x̂ = x makes, against the model run whole.

        Measured on the first contexts; rounding alone, unless the restart is wrong.
        """

        def compute() -> dict[str, Tensor]:
            batch = self._batch(slice(0, min(_IDENTITY_CONTEXTS, len(self.is_counted))), {})
            subject, _ = self.context.model()
            whole = WholeLogits(self.restart).predicted(run_patched([subject], batch.ids, [lambda x: x]), batch.ids)
            return {"error": (self.losses(batch, batch.activations).ce - whole["ce"]).abs().max()}

        return float(self.context.store.get(self.context.of("identity", version=2), compute)["error"])

    def _entries(self) -> list[slice]:
        """Return the contexts of each entry of the store: whole batches."""
        per_token = 4 * len(self.mean) + (self.way.bytes_per_token if self.keeps_predictions else 0)
        batch_bytes = self.size * self.is_counted.shape[1] * per_token
        return _slices(slice(0, len(self.is_counted)), self.size * max(1, _ENTRY_BYTES // max(1, batch_bytes)))

    def _batches_of(self, entry: slice, phase: str) -> Iterator[slice]:
        for rows in _slices(entry, self.size):
            self.context.progress(phase, rows.start / len(self.is_counted))
            yield rows

    def _kept(self, entry: slice, phase: str) -> Mapping[str, Tensor]:
        how = {"keeps": self.way.keeps if self.keeps_predictions else (), "kernels": kernels_for() is not None}
        of = self.context.of("clean pass", version=3, contexts=[entry.start, entry.stop], **how)
        return self.context.store.get(of, partial(self._computed, entry, phase))

    def _computed(self, entry: slice, phase: str) -> dict[str, Tensor]:
        parts = [self._computed_of(rows) for rows in self._batches_of(entry, phase)]
        return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}

    def _computed_of(self, rows: slice) -> dict[str, Tensor]:
        batch = self._batch(rows, {})
        found = dict(batch.clean) if self.keeps_predictions else {"ce": batch.clean["ce"]}
        for name, value in (("zero", torch.zeros_like(self.mean)), ("mean", self.mean)):
            found[f"ce_{name}"], found[f"kl_{name}"] = self._losses_everywhere(batch, value)
        if batch.stored is not None and not self.restart.is_at_hook:
            found["stored"] = batch.stored
        return found

    def _losses_everywhere(self, batch: CleanBatch, value: Float[Tensor, " d_model"]) -> TokenLosses:
        """Return what one vector costs at every position that counts; contexts that it makes alike are run once."""
        replaced = torch.where(batch.is_measured.unsqueeze(-1), value, batch.activations)
        if not self.restart.ignores_ids:
            return self.losses(batch, replaced)
        distinct, of = torch.unique(replaced.flatten(1), dim=0, return_inverse=True)
        rows = distinct.view(-1, *replaced.shape[1:])
        subject, _ = self.context.model()
        outputs = self.way.outputs(batch.ids[: len(rows)], rows.to(subject.dtype), lambda _: rows)
        return self.way.losses(outputs, batch.ids, batch.clean, of=of)

    def _outputs(self, batch: CleanBatch, replaced: Float[Tensor, "batch context d_model"]) -> Tensor:
        mask = batch.is_measured.unsqueeze(-1)
        return self.way.outputs(batch.ids, batch.stored, lambda x: torch.where(mask, replaced, x))

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
        if set(self.way.keeps) <= kept.keys():
            clean = {name: kept[name].to(device) for name in ("ce", *self.way.keeps)}
        else:
            clean = dict(self.way.predicted(self.way.outputs(ids, stored, lambda x: x), ids))
        losses = {name: value for name, value in kept.items() if name.startswith(("ce", "kl"))}
        return CleanBatch(rows, ids, is_measured, activations, stored, clean, losses)


def _slices(whole: slice, size: int) -> list[slice]:
    return [slice(first, min(first + size, whole.stop)) for first in range(whole.start, whole.stop, size)]


def _within(rows: slice, entry: slice) -> slice:
    return slice(rows.start - entry.start, rows.stop - entry.start)
