"""The largest activations of some latents at each layer, with the text around them."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from worker.evaluation.heldout_text import Text
from worker.evaluation.layers.batches import Active, LayerBatch


class TopExamples:
    """Keeps the largest activations of each (latent, layer) while a text is read."""

    def __init__(
        self, latents: Int[Tensor, " n_chosen"], n_latents: int, *, n_layers: int, most: int, device: torch.device
    ) -> None:
        """Begin with none, for at most so many of each."""
        self._latents, self._most = latents, most
        slots = torch.arange(len(latents))
        self._slot_of = torch.full((n_latents,), -1).index_copy(0, latents, slots).to(device)
        self._values = torch.zeros(n_layers, len(latents), 0, device=device)
        self._positions = torch.zeros(n_layers, len(latents), 0, dtype=torch.long, device=device)

    def add(self, batch: LayerBatch, found: Active) -> None:
        """Take note of what is active in a batch."""
        slot = self._slot_of[found.latent]
        of_chosen = slot >= 0
        table = self._values.new_zeros(*self._values.shape[:2], len(batch.rows))
        cells = (found.layer[of_chosen], slot[of_chosen], found.token[of_chosen])
        table[cells] = found.value[of_chosen].to(table.dtype)
        values, at = table.topk(min(self._most, len(batch.rows)), dim=-1)
        values = torch.cat([self._values, values], dim=-1)
        positions = torch.cat([self._positions, batch.positions[at]], dim=-1)
        self._values, kept = values.topk(min(self._most, values.shape[-1]), dim=-1)
        self._positions = positions.gather(-1, kept)

    def table(self, text: Text, layers: Sequence[int], tokenizer: Any, *, around: int) -> dict[str, Any]:
        """Return for a file by latent and layer, the largest first: value, tokens, and which of them is its own."""
        values, positions = self._values.tolist(), self._positions.tolist()
        width, ids = text.ids.shape[1], text.ids.tolist()

        def shown(value: float, position: int) -> dict[str, Any]:
            row, column = divmod(position, width)
            start = max(0, column - around)
            tokens = [tokenizer.decode([one]) for one in ids[row][start : column + around + 1]]
            return {"value": round(value, 4), "tokens": tokens, "at": column - start, "context": int(text.numbers[row])}

        return {
            str(latent): {
                str(layer): [
                    shown(value, position)
                    for value, position in zip(values[at][slot], positions[at][slot], strict=True)
                    if value > 0
                ]
                for at, layer in enumerate(layers)
            }
            for slot, latent in enumerate(self._latents.tolist())
        }
