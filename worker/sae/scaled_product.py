"""Products in float8_e4m3 with a scale for each row: they choose the candidates that are then computed again exactly.

e4m3 has 3 bits of mantissa. A row is divided by its largest magnitude over 448, the largest number of the format: what
is rounded is at most a sixteenth of each value. Source: Micikevicius et al. 2022, FP8 Formats for Deep Learning.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worker.accelerator import FLOAT8_CAPABILITY
from worker.sae.topk import rescored_top_k

FLOAT8 = torch.float8_e4m3fn
_MOST = torch.finfo(FLOAT8).max
_WHOLE = 16
"""Both sizes of a matrix must be multiples of this where a GPU multiplies it."""
_TILE_BYTES = 2**30
"""Pre-activations that exist at a time, in float32."""


class ScaledRows(NamedTuple):
    """A matrix as float8 numbers, and a scale for each row by which they are to be multiplied."""

    values: Tensor
    """(n_rows, d_model), float8_e4m3."""
    scales: Float[Tensor, "n_rows 1"]

    @classmethod
    def of(cls, rows: Float[Tensor, "n_rows d_model"]) -> "ScaledRows":
        """Round a matrix; a row with a value that is not finite becomes NaN."""
        scales = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) / _MOST
        return cls((rows / scales).to(FLOAT8), scales.where(scales.isfinite(), torch.nan))

    def times(self, other: "ScaledRows") -> Tensor:
        """Return rows · othersᵀ: bfloat16 where a GPU multiplies float8, else float32.

        Shapes:
            (n_rows, d_model), (n_others, d_model) -> (n_rows, n_others)
        """
        product: Tensor = _product(*self, *other)
        return product


@torch.no_grad()
def scaled_top_k(
    centred: Float[Tensor, "n_tokens d_model"],
    encoder: tuple[Float[Tensor, "n_latents d_model"], Float[Tensor, " n_latents"]],
    k: int,
) -> tuple[Float[Tensor, "n_tokens k"], Int[Tensor, "n_tokens k"]]:
    """Return the k largest pre-activations of each token, exact, and their places, by tiles of tokens."""
    table, b_enc = ScaledRows.of(encoder[0]), encoder[1]
    found = []
    for tile in centred.chunk(n_tiles(len(centred), len(b_enc))):
        pre_acts = ScaledRows.of(tile).times(table)
        found.append(rescored_top_k(pre_acts, tile, encoder, k, bias=b_enc.to(pre_acts.dtype)))
    values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, indices


def n_tiles(n_tokens: int, n_latents: int) -> int:
    """Return in how many parts the tokens of a batch are multiplied."""
    return max(1, -(-4 * n_tokens * n_latents // _TILE_BYTES))


@torch.library.custom_op("orch::scaled_product", mutates_args=())
def _product(rows: Tensor, row_scales: Tensor, others: Tensor, other_scales: Tensor) -> Tensor:
    if _is_multiplied(rows, others):
        return torch._scaled_mm(rows, others.T, scale_a=row_scales, scale_b=other_scales.T, out_dtype=torch.bfloat16)
    return torch.mm(rows.float(), others.float().T).mul_(row_scales).mul_(other_scales.T)


@_product.register_fake
def _(rows: Tensor, row_scales: Tensor, others: Tensor, other_scales: Tensor) -> Tensor:
    dtype = torch.bfloat16 if _is_multiplied(rows, others) else torch.float32
    return row_scales.new_empty(len(rows), len(others), dtype=dtype)


def _is_multiplied(rows: Tensor, others: Tensor) -> bool:
    fits = all(size % _WHOLE == 0 for size in (*rows.shape, *others.shape))
    return rows.is_cuda and fits and torch.cuda.get_device_capability(rows.device) >= FLOAT8_CAPABILITY
