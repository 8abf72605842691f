"""The encoder's product with block maxima, and an exact selection that reads the maxima and k blocks of latents.

The k largest of a token lie in the k blocks of 64 latents with the largest maxima, equal maxima in the order of their
blocks: were the j-th in another block, the maxima of those k would all come before it. So the selection reads
n/64 + 64·k values per token instead of n, several times over as torch.topk does. Values are compared as int32 keys that
sort as the floats do, with NaN above ∞ as in torch.sort and −0 equal to 0.

Not built: a form that writes the maxima alone and computes the k blocks again. Gathered per token it would read
64·k·D values each, and grouped by block it needs a second sort. A tile of tokens costs no operations and bounds the
memory just as well.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

BLOCK = 64
"""Latents per maximum."""
_LARGEST = 16384
"""Values that one program selects from, held in its registers."""
_TILE_BYTES = 2**30
"""Pre-activations that exist at a time in `encode_top_k`."""
_LOWEST = tl.constexpr(-(2**31))
"""Below the key of every float: where there is no latent."""


@triton.jit
@no_type_check
def sort_key(values):
    """Return int32 keys in the order of the float32 values: NaN last and equal to each other, −0 equal to 0."""
    bits = tl.where(values == 0, 0.0, values).to(tl.int32, bitcast=True)
    return tl.where(values != values, 0x7FFFFFFF, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
@no_type_check
def encode_kernel(
    x, W, bias, out, maxima, n_tokens, n_latents, d_model, n_blocks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write one tile of x · Wᵀ + bias, and the key of the largest of each block of latents in it."""
    # Eight tiles of tokens share each tile of W before the next is read: both stay in L2.
    down, across, program = tl.cdiv(n_tokens, BLOCK_M), tl.cdiv(n_latents, BLOCK_N), tl.program_id(0)
    first = program // (8 * across) * 8
    height = tl.minimum(down - first, 8)
    tile_m = first + program % (8 * across) % height
    tile_n = program % (8 * across) // height
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows beyond the end read a row that exists and are not stored: no mask in the loop.
    x_rows = (rows % n_tokens).to(tl.int64)[:, None] * d_model
    W_rows = (columns % n_latents).to(tl.int64)[None, :] * d_model
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, d_model, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        if EVEN:
            left, right = tl.load(x + x_rows + inner[None, :]), tl.load(W + W_rows + inner[:, None])
        else:
            left = tl.load(x + x_rows + inner[None, :], mask=(inner < d_model)[None, :], other=0.0)
            right = tl.load(W + W_rows + inner[:, None], mask=(inner < d_model)[:, None], other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    inside = columns < n_latents
    total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    # The maxima are of what is stored, rounded as it is: else the selection would not be exact.
    stored = total.to(out.dtype.element_ty)
    tl.store(
        out + rows.to(tl.int64)[:, None] * n_latents + columns[None, :],
        stored,
        mask=(rows < n_tokens)[:, None] & inside[None, :],
    )
    keys = tl.where(inside[None, :], sort_key(stored.to(tl.float32)), _LOWEST)
    largest = tl.max(tl.reshape(keys, [BLOCK_M, BLOCK_N // BLOCK, BLOCK]), axis=2)
    blocks = tile_n * (BLOCK_N // BLOCK) + tl.arange(0, BLOCK_N // BLOCK)
    mask = (rows < n_tokens)[:, None] & (blocks < n_blocks)[None, :]
    tl.store(maxima + rows.to(tl.int64)[:, None] * n_blocks + blocks[None, :], largest, mask=mask)


@triton.jit
@no_type_check
def maxima_kernel(pre_acts, maxima, n_latents, n_blocks, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Write the key of the largest of each block of latents of one row, BLOCKS of them."""
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    places = blocks[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = places < n_latents
    acts = tl.load(pre_acts + row * n_latents + places, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.where(inside, sort_key(acts), _LOWEST), axis=1)
    tl.store(maxima + row * n_blocks + blocks, largest, mask=blocks < n_blocks)


@triton.jit
@no_type_check
def select_kernel(
    maxima, pre_acts, chosen, out, values, n_from, n_latents, k,
    BLOCK: tl.constexpr, SIZE: tl.constexpr, OF_BLOCKS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Write, in ascending order, the k places of one row with the largest keys; of equal ones at the edge the lowest.

    OF_BLOCKS: places of block maxima; else latents, in the n_from / BLOCK blocks of `chosen`. BITS: of a key that tell
    values apart; 16 where they are bfloat16, whose lower half says only what the sign says.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SIZE)
    there = at < n_from
    if OF_BLOCKS:
        places = at
        keys = tl.load(maxima + row * n_from + at, mask=there, other=_LOWEST)
    else:
        block = tl.load(chosen + row * (n_from // BLOCK) + at // BLOCK, mask=there, other=0)
        places = block * BLOCK + at % BLOCK
        there = there & (places < n_latents)
        acts = tl.load(pre_acts + row * n_latents + places, mask=there, other=0.0)
        keys = tl.where(there, sort_key(acts.to(tl.float32)), _LOWEST)
    keys = keys >> (32 - BITS)
    # The k-th largest key, bit by bit from the top; the sign bit first, since the keys are signed.
    edge = tl.where(tl.sum((keys >= 0).to(tl.int32), axis=0) >= k, 0, -(1 << (BITS - 1)))
    for step in range(BITS - 1):
        higher = edge | (1 << (BITS - 2 - step))
        edge = tl.where(tl.sum((keys >= higher).to(tl.int32), axis=0) >= k, higher, edge)
    above, equal = keys > edge, keys == edge
    wanted = k - tl.sum(above.to(tl.int32), axis=0)
    kept = above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= wanted))
    target = tl.cumsum(kept.to(tl.int32), axis=0) - 1
    tl.store(out + row * k + target, places, mask=kept)
    if not OF_BLOCKS:
        # Read off the keys, which are in registers; every NaN has become one NaN, and −0 has become 0.
        bits = (keys ^ ((keys >> 31) & ((1 << (BITS - 1)) - 1))) << (32 - BITS)
        tl.store(values + row * k + target, bits.to(tl.float32, bitcast=True), mask=kept)


@torch.library.custom_op("orch::encode", mutates_args=())
def encode(centred: Tensor, W_enc: Tensor, b_enc: Tensor, *, way: str = "wide") -> tuple[Tensor, Tensor]:
    """Return centred · W_encᵀ + b_enc, in the dtype of `centred`, and the int32 key of each block's maximum.

    Floor: 2·B·D·n operations, on the tensor cores for bfloat16, summed in float32 (float32 is multiplied exactly,
    without tf32); reads B·D and n·D once, writes B·n and B·n/64. `way`, of which the fastest is measured: "wide", tiles
    of 128 × 256 for one program per multiprocessor; "narrow", 128 × 128 for two, of which one multiplies while the
    other writes; "library", the library's own product, read once more for the maxima: B·n bytes against a better loop.
    """
    n_tokens, n_latents = len(centred), len(W_enc)
    if way == "library":
        pre_acts = functional.linear(centred, W_enc, b_enc.to(centred.dtype))
        return pre_acts, _maxima(pre_acts)
    pre_acts = centred.new_empty(n_tokens, n_latents)
    maxima = centred.new_empty(n_tokens, triton.cdiv(n_latents, BLOCK), dtype=torch.int32)
    _encode(centred, W_enc, b_enc, (pre_acts, maxima), wide=way == "wide")
    return pre_acts, maxima


@torch.library.custom_op("orch::select", mutates_args=())
def select(pre_acts: Tensor, maxima: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row and their places: largest first, of equal ones the lower place first.

    Floor: reads B·n/64 maxima and 64·B·k values (B·n where k ≥ n/64), writes B·k of each; about 35 operations on each.
    """
    (n_tokens, n_latents), n_blocks = pre_acts.shape, maxima.shape[1]
    k_blocks = min(k, n_blocks)
    if max(n_blocks, k_blocks * BLOCK) > _LARGEST:
        return _by_sorting(pre_acts, k)
    blocks = maxima.new_empty(n_tokens, k_blocks)
    indices = maxima.new_empty(n_tokens, k, dtype=torch.int64)
    values = pre_acts.new_empty(n_tokens, k)
    if indices.numel():
        for of_blocks, n_from, n_kept, out in (
            (True, n_blocks, k_blocks, blocks),
            (False, k_blocks * BLOCK, k, indices),
        ):
            size = triton.next_power_of_2(n_from)
            select_kernel[n_tokens,](
                maxima, pre_acts, blocks, out, values, n_from, n_latents, n_kept,
                BLOCK=BLOCK, SIZE=size, OF_BLOCKS=of_blocks, BITS=16 if pre_acts.dtype == torch.bfloat16 else 32,
                num_warps=max(1, min(32, size // 512)), enable_fp_fusion=True,
            )  # fmt: skip
    # They lie in the order of their places, so that a stable sort by value leaves equal ones so.
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


@torch.library.custom_op("orch::encode_top_k", mutates_args=())
def encode_top_k(centred: Tensor, W_enc: Tensor, b_enc: Tensor, *, k: int, way: str = "wide") -> tuple[Tensor, Tensor]:
    """Do `encode` and `select` by tiles of tokens, so that no more than 1 GiB of pre-activations exists at a time."""
    n_latents = len(W_enc)
    n_tiles = triton.cdiv(centred.numel() // centred.shape[1] * n_latents * centred.element_size(), _TILE_BYTES)
    found = []
    for tile in centred.chunk(max(1, n_tiles)):
        pre_acts, maxima = encode(tile, W_enc, b_enc, way=way)
        found.append(select(pre_acts, maxima, k=k))
        # Freed before the next is made: the allocator hands out the same memory again.
        del pre_acts, maxima
    values, indices = zip(*found, strict=True)
    return torch.cat(values), torch.cat(indices)


def _encode(centred: Tensor, W_enc: Tensor, b_enc: Tensor, out: tuple[Tensor, Tensor], *, wide: bool) -> None:
    (n_tokens, d_model), n_latents = centred.shape, len(W_enc)
    pre_acts, maxima = out
    if not pre_acts.numel():
        return
    exact = centred.dtype == torch.float32
    large = wide and not exact
    block_m = min(128, max(16, triton.next_power_of_2(n_tokens)))
    block_n = min(256 if large else 128, max(BLOCK, triton.next_power_of_2(n_latents)))
    block_k = min(32 if exact else 64, max(16, triton.next_power_of_2(d_model)))
    grid = (triton.cdiv(n_tokens, block_m) * triton.cdiv(n_latents, block_n),)
    encode_kernel[grid](
        centred.contiguous(), W_enc.contiguous(), b_enc.contiguous(), pre_acts, maxima,
        n_tokens, n_latents, d_model, maxima.shape[1],
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, BLOCK=BLOCK, EVEN=d_model % block_k == 0,
        PRECISION="ieee" if exact else "tf32", num_warps=8 if wide or exact else 4, num_stages=3, enable_fp_fusion=True,
    )  # fmt: skip


@torch.library.custom_op("orch::block_maxima", mutates_args=())
def block_maxima(pre_acts: Tensor) -> Tensor:
    """Return the int32 key of the largest of each block of latents, of each row."""
    return _maxima(pre_acts)


def _maxima(pre_acts: Tensor) -> Tensor:
    n_tokens, n_latents = pre_acts.shape
    n_blocks = triton.cdiv(n_latents, BLOCK)
    maxima = pre_acts.new_empty(n_tokens, n_blocks, dtype=torch.int32)
    if maxima.numel():
        size = min(64, triton.next_power_of_2(n_blocks))
        grid = (n_tokens, triton.cdiv(n_blocks, size))
        maxima_kernel[grid](pre_acts, maxima, n_latents, n_blocks, BLOCK=BLOCK, BLOCKS=size, num_warps=4)
    return maxima


def _by_sorting(pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = pre_acts.sort(dim=1, descending=True, stable=True)
    return values[:, :k].contiguous(), indices[:, :k].contiguous()


@encode.register_fake
def _(centred: Tensor, W_enc: Tensor, b_enc: Tensor, *, way: str = "wide") -> tuple[Tensor, Tensor]:
    n_tokens, n_latents = centred.shape[0], W_enc.shape[0]
    n_blocks = (n_latents + BLOCK - 1) // BLOCK
    return centred.new_empty(n_tokens, n_latents), centred.new_empty(n_tokens, n_blocks, dtype=torch.int32)


@block_maxima.register_fake
def _(pre_acts: Tensor) -> Tensor:
    n_tokens, n_latents = pre_acts.shape
    return pre_acts.new_empty(n_tokens, (n_latents + BLOCK - 1) // BLOCK, dtype=torch.int32)


@select.register_fake
def _(pre_acts: Tensor, maxima: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    shape = (pre_acts.shape[0], k)
    return pre_acts.new_empty(shape), pre_acts.new_empty(shape, dtype=torch.int64)


@encode_top_k.register_fake
def _(centred: Tensor, W_enc: Tensor, b_enc: Tensor, *, k: int, way: str = "wide") -> tuple[Tensor, Tensor]:
    shape = (centred.shape[0], k)
    return centred.new_empty(shape), centred.new_empty(shape, dtype=torch.int64)
