"""Sums over the activations of each latent at each layer, from which every distribution over layers follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worker.evaluation.layers.batches import Active, LayerBatch

RELEASED = ("batches", "token", "latent", "total")
"""Columns of `LayerSums.released`: 1, and by the released code E Var(L | J, T), E Var(L | J) and Var(L)."""
_MOST_BLOCKS = 64
_FEWEST_BLOCKS = 8
_TABLE_VALUES = 1 << 25
"""Cells of a table of blocks × layers × latents; where there would be more, blocks are larger."""


class LayerTotals(NamedTuple):
    """`LayerSums` without blocks: of the whole text, or of one draw of its blocks."""

    layers: Int[Tensor, " n_layers"]
    n_tokens: Float[Tensor, ""]
    acts: Float[Tensor, "n_layers n_latents"]
    counts: Float[Tensor, "n_layers n_latents"]
    spread: Float[Tensor, ""]


@dataclass(frozen=True)
class LayerSums:
    """Sums over the activations a > 0 of each latent j at layer l and token t, on the CPU, float64.

    Blocks are runs of whole contexts: what is drawn again for intervals.
    """

    layers: Int[Tensor, " n_layers"]
    """Block of the model behind each row, counted from 0."""
    n_tokens: Float[Tensor, " n_blocks"]
    acts: Float[Tensor, "n_blocks n_layers n_latents"]
    """Σ_t a."""
    counts: Float[Tensor, "n_blocks n_layers n_latents"]
    """How often a > 0."""
    spread: Float[Tensor, " n_blocks"]
    """Σ_tj (Σ_l a) · Var(L | j, t): the layers of one latent at one token, weighted by the activation."""
    released: Float[Tensor, "n_contexts 4"]
    """By `RELEASED`, of each context that has a measured token."""

    def weighted(self, weights: Float[Tensor, " n_blocks"]) -> LayerTotals:
        """Return the totals with each block as often as its weight says."""
        acts, counts = (torch.tensordot(weights, table, 1) for table in (self.acts, self.counts))
        return LayerTotals(self.layers, weights @ self.n_tokens, acts, counts, weights @ self.spread)

    @property
    def total(self) -> LayerTotals:
        """Return the totals of the text."""
        return self.weighted(torch.ones_like(self.n_tokens))


class SumsOfLayers:
    """Adds up `LayerSums` batch by batch.

    P(l | j, t) = a_ltj / Σ_l a_ltj, and Var(L | j, t) its variance. The released code averages P(l | j, t) over ALL
    tokens and latents of a batch, which is one context here and there, with 0 where a latent is not active: so its
    probabilities do not add up to 1, and its variances Σ l² P − (Σ l P)² depend on where layers are counted from.
    They are counted from 0 there, in the order of the rows.
    """

    def __init__(self, layers: Sequence[int], n_latents: int, *, n_contexts: int, device: torch.device) -> None:
        """Begin at 0, for a text of so many contexts."""
        cells = len(layers) * n_latents
        n_blocks = min(n_contexts, max(_FEWEST_BLOCKS, min(_MOST_BLOCKS, _TABLE_VALUES // cells)))
        self._block_of = torch.arange(n_contexts, device=device) * n_blocks // n_contexts
        self._layers = torch.tensor(layers, device=device)
        self._n_latents, self._n_layers = n_latents, len(layers)
        self._tokens = torch.zeros(n_blocks, dtype=torch.float64, device=device)
        self._acts = torch.zeros(n_blocks, len(layers), n_latents, dtype=torch.float64, device=device)
        self._counts = torch.zeros_like(self._acts)
        self._spread = torch.zeros_like(self._tokens)
        self._released: list[Tensor] = []

    def add(self, batch: LayerBatch, found: Active) -> None:
        """Add a batch and what is active in it."""
        value = found.value.double()
        blocks = self._block_of[batch.rows]
        self._tokens.index_add_(0, blocks, torch.ones_like(blocks, dtype=torch.float64))
        cells = (blocks[found.token] * self._n_layers + found.layer) * self._n_latents + found.latent
        self._acts.view(-1).index_add_(0, cells, value)
        self._counts.view(-1).index_add_(0, cells, torch.ones_like(value))
        # One pair (token, latent) for each latent that is active at any layer of a token.
        pairs, pair_of = torch.unique(found.token * self._n_latents + found.latent, return_inverse=True)
        mass = value.new_zeros(len(pairs)).index_add_(0, pair_of, value)
        share = value / mass[pair_of]
        token = pairs // self._n_latents
        self._spread.index_add_(0, blocks[token], mass * _variance_of_pairs(share, pair_of, self._layers[found.layer]))
        self._add_released(batch, found, share, (token, _variance_of_pairs(share, pair_of, found.layer)))

    def result(self) -> LayerSums:
        """Return the sums."""
        released = torch.cat(self._released) if self._released else torch.zeros(0, len(RELEASED))
        parts = (self._layers, self._tokens, self._acts, self._counts, self._spread, released)
        return LayerSums(*(part.cpu() for part in parts))

    def _add_released(self, batch: LayerBatch, found: Active, share: Tensor, variances: tuple[Tensor, Tensor]) -> None:
        """Add E Var(L | J, T), E Var(L | J) and Var(L) of each context, as the released code computes them."""
        rows = batch.rows - batch.first
        n_tokens = rows.bincount(minlength=batch.n_contexts).double()
        cells = (rows[found.token] * self._n_layers + found.layer) * self._n_latents + found.latent
        sums = share.new_zeros(batch.n_contexts * self._n_layers * self._n_latents).index_add_(0, cells, share)
        mean = sums.view(batch.n_contexts, self._n_layers, self._n_latents) / n_tokens[:, None, None]
        token, variance = variances
        within = share.new_zeros(batch.n_contexts).index_add_(0, rows[token], variance) / (n_tokens * self._n_latents)
        of_latent = self._variance(mean.movedim(1, -1)).mean(-1)
        columns = (torch.ones_like(within), within, of_latent, self._variance(mean.mean(-1)))
        self._released.append(torch.stack(columns, dim=1)[n_tokens > 0])

    def _variance(self, weights: Float[Tensor, "*batch n_layers"]) -> Float[Tensor, "*batch"]:
        at = torch.arange(self._n_layers, dtype=weights.dtype, device=weights.device)
        return weights @ at.square() - (weights @ at).square()


def _variance_of_pairs(
    share: Float[Tensor, " n_active"], pair_of: Int[Tensor, " n_active"], layer: Int[Tensor, " n_active"]
) -> Float[Tensor, " n_pairs"]:
    """Return Var(L | j, t) of every pair, about its own mean: 0 where it is active at one layer alone."""
    n_pairs = int(pair_of.max()) + 1 if len(pair_of) else 0
    mean = share.new_zeros(n_pairs).index_add_(0, pair_of, share * layer)
    return share.new_zeros(n_pairs).index_add_(0, pair_of, share * (layer - mean[pair_of]).square())
