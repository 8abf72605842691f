"""One pass over the text: sums over the activations of each latent, from which everything else follows."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worker.evaluation.heldout_text import Text
from worker.sae.inference import InferenceSae

REGRESSORS = ("position", "repetition")
"""The token's position in its context; whether the context has had it before, beyond what token and position say."""
N_BLOCKS = 64
"""Most blocks of whole contexts: the units that are resampled, for the tokens of one context are alike."""
CHUNK_VALUES = 1 << 24
"""Activations that are held at once."""
TABLE_VALUES = 1 << 26
"""Cells of a table of latents × tokens of the vocabulary; where there would be more, a sample of latents has rows."""
_SWEEPS = 20
"""Rounds in which the means by token and by position are taken out in turn."""


@dataclass(frozen=True)
class Tokens:
    """What is known of each vector beside its values. Of a synthetic distribution: its block alone."""

    blocks: Int[Tensor, " n_tokens"]
    is_first: Bool[Tensor, " n_tokens"]
    """Whether it is the first of its context."""
    regressors: Float[Tensor, "n_regressors n_tokens"]
    """By `REGRESSORS`, without their means, 0 at first tokens; none of a synthetic distribution."""
    ids: Int[Tensor, " n_tokens"] | None = None
    """Of the tokens, those that occur numbered anew."""

    @property
    def n_blocks(self) -> int:
        """Return the number of blocks."""
        return int(self.blocks[-1]) + 1

    def block_sums(self, values: Float[Tensor, "n n_tokens"]) -> Float[Tensor, "n n_blocks"]:
        """Return the sums of some values over the tokens of each block."""
        return values.new_zeros(len(values), self.n_blocks).index_add_(1, self.blocks, values)


@dataclass(frozen=True)
class Activity:
    """Sums over the activations a ≥ 0 of each latent, on the CPU. Of two: first tokens of a context, all others."""

    n_tokens: Float[Tensor, "2"]
    n_active: Float[Tensor, "2 n_latents"]
    powers: Float[Tensor, "2 4 n_latents"]
    """Σ a, Σ a², Σ a³, Σ a⁴."""
    block_active: Float[Tensor, "n_blocks n_latents"]
    products: Float[Tensor, "n_regressors n_blocks n_latents"]
    """Σ a · regressor."""
    sampled: Int[Tensor, " n_sampled"]
    """The latents that have a row in `squares`: all, or a sample."""
    squares: Float[Tensor, "n_sampled n_occurring"] | None
    """Mean a² over the occurrences of each token of the vocabulary that occurs; None of a synthetic distribution."""

    @property
    def density(self) -> Float[Tensor, " n_latents"]:
        """P(a > 0)."""
        return self.n_active.sum(0) / self.n_tokens.sum()


def tokens_of(text: Text) -> Tokens:
    """Say of each measured token of some contexts where it stands, in the text's order."""
    numbers, positions = text.is_measured.nonzero(as_tuple=True)
    ids = _renumbered(text.ids[numbers, positions])
    is_rest = (positions > 0).double()
    position = (positions - (positions * is_rest).sum() / is_rest.sum().clamp_min(1)) * is_rest
    repeated = _is_repeated(text.ids)[numbers, positions].double() * is_rest
    for _ in range(_SWEEPS):
        for groups in (ids, positions):
            repeated = repeated - _means(repeated, groups, is_rest)[groups] * is_rest
    blocks = _renumbered(numbers * min(len(text), N_BLOCKS) // len(text))
    return Tokens(blocks, positions == 0, torch.stack([position, repeated]), ids)


def independent_vectors(n: int) -> Tokens:
    """Return the same of vectors that are of no text: blocks alone."""
    blocks = torch.arange(n) * min(n, N_BLOCKS) // n
    return Tokens(blocks, torch.zeros(n, dtype=torch.bool), torch.zeros(0, n, dtype=torch.float64))


@torch.no_grad()
def measure_activity(
    sae: InferenceSae,
    vectors: Float[Tensor, "n_tokens d_model"],
    tokens: Tokens,
    *,
    generator: torch.Generator,
    advance: Callable[[float], None],
) -> Activity:
    """Sum over all tokens, in float64; `advance` is told the share that is done."""
    n, device = sae.facts.n_latents, vectors.device
    n_ids = 0 if tokens.ids is None else int(tokens.ids.max()) + 1
    sampled = torch.randperm(n, generator=generator)[: TABLE_VALUES // max(1, n_ids)].sort().values
    row_of = torch.full((n,), -1).index_copy(0, sampled, torch.arange(len(sampled))).to(device)
    blocks, groups, ids = tokens.blocks.to(device), (~tokens.is_first).long().to(device), tokens.ids
    regressors, ids = tokens.regressors.to(device), None if ids is None else ids.to(device)
    powers = torch.zeros(2, 5, n, dtype=torch.float64, device=device)
    active = torch.zeros(tokens.n_blocks, n, dtype=torch.float64, device=device)
    products = torch.zeros(len(regressors), tokens.n_blocks, n, dtype=torch.float64, device=device)
    squares = torch.zeros(len(sampled), n_ids, device=device)
    size = max(1, CHUNK_VALUES // n)
    for start in range(0, len(vectors), size):
        acts = sae.encode(vectors[start : start + size])
        rows, latents = acts.nonzero(as_tuple=True)
        values, at = acts[rows, latents].double(), rows + start
        for power in range(5):
            _add(powers, (groups[at] * 5 + power) * n + latents, values**power)
        cells = blocks[at] * n + latents
        _add(active, cells, torch.ones_like(values))
        for sums, regressor in zip(products, regressors, strict=True):
            _add(sums, cells, values * regressor[at])
        if ids is not None:
            has_row = row_of[latents] >= 0
            _add(squares, (row_of[latents] * n_ids + ids[at])[has_row], values[has_row].square().float())
        advance(min(1.0, (start + size) / len(vectors)))
    of_first = tokens.is_first.sum()
    return Activity(
        n_tokens=torch.stack([of_first, len(vectors) - of_first]).double(),
        n_active=powers[:, 0].cpu(),
        powers=powers[:, 1:].cpu(),
        block_active=active.cpu(),
        products=products.cpu(),
        sampled=sampled,
        squares=None if ids is None else (squares / ids.bincount(minlength=n_ids)).cpu(),
    )


def _add(sums: Tensor, cells: Tensor, values: Tensor) -> None:
    sums.view(-1).index_add_(0, cells, values)


def _renumbered(values: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    return torch.from_numpy(np.unique(values.numpy(), return_inverse=True)[1])


def _means(values: Tensor, groups: Tensor, weights: Tensor) -> Tensor:
    return groups.bincount(values * weights) / groups.bincount(weights).clamp_min(1)


def _is_repeated(ids: Int[Tensor, "n_contexts context"]) -> Bool[Tensor, "n_contexts context"]:
    """Say of each token whether its context has had it before."""
    ordered, order = ids.sort(dim=1, stable=True)
    same = torch.zeros_like(ordered, dtype=torch.bool)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(same).scatter(1, order, same)
