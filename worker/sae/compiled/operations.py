"""The parts of a step that exist twice: here in plain torch, and as Triton kernels behind the same signatures.

Tensors in, tensors out, no autograd inside. `autotune.operations` says which is to run where.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worker.sae.dead_latents import count_tokens_since_fired
from worker.sae.sparse import by_latent, sampled_product, sparse_decode, sum_by_latent
from worker.sae.topk import top_k

_TILE_BYTES = 2**30
"""Pre-activations that exist at a time in `encode_top_k`, as in kernels.blockmax."""

Three = tuple[Tensor, Tensor, Tensor]


class Operations(NamedTuple):
    """One implementation of each part. B tokens, D = d_model, n latents; values float32, indices int64."""

    encode: Callable[..., tuple[Tensor, Tensor]]
    """(centred, W_enc, b_enc) -> pre-activations (B, n) in the inputs' dtype, and what `select` needs beside them."""
    block_maxima: Callable[[Tensor], Tensor]
    """(pre_acts) -> what `select` needs beside pre-activations that something else has computed."""
    select: Callable[..., tuple[Tensor, Tensor]]
    """(pre_acts, maxima, *, k) -> the k largest SIGNED values of each row and their places, largest first."""
    encode_top_k: Callable[..., tuple[Tensor, Tensor]]
    """(centred, W_enc, b_enc, *, k) -> what `select` returns, without keeping the pre-activations."""
    decode: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(top_acts, top_indices, W_dec) -> Σ act · row (B, D)."""
    reconstruction_error: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    """(x, top_acts, top_indices, W_dec, b_pre) -> x − x̂ (B, D), and its squared norm per token (B,)."""
    sampled_product: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(rows, top_indices, W) -> ⟨row, W[i]⟩ (B, k)."""
    latent_gradients: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Three]
    """(top_acts after ReLU, top_indices, ∂x̂, centred, W_dec) -> ∂W_dec, ∂W_enc, ∂b_enc."""
    add_latent_gradients: Callable[..., None]
    """The same, then three tensors that they are added to: AuxK, on the rows of chosen latents alone."""
    sums_by_latent: Callable[..., Three]
    """(top_acts, ∂top_acts, top_indices, ∂x̂, centred, *, n_latents) -> ∂W_dec, ∂W_enc, ∂b_enc (multi_topk)."""
    count_tokens_since_fired: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(top_acts, top_indices, tokens_since_fired) -> tokens_since_fired after the batch."""
    adam: Callable[..., Tensor]
    """(weights, gradient, exp_avg, exp_avg_sq, average, scalars, *, betas, eps, sphere) -> Σ g²; in place."""
    gradient_squares: Callable[..., Tensor]
    """(weights, gradient, *, sphere) -> the Σ g² that `adam` would return; changes nothing."""


def encode(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> tuple[Tensor, Tensor]:
    """Return centred · W_encᵀ + b_enc, and no maxima: torch selects without them."""
    return functional.linear(centred, W_enc, b_enc.to(centred.dtype)), centred.new_empty(len(centred), 0)


def block_maxima(pre_acts: Tensor) -> Tensor:
    """Return no maxima, as `encode`."""
    return pre_acts.new_empty(len(pre_acts), 0)


def select(pre_acts: Tensor, maxima: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest values of each row and their places."""
    indices = top_k(pre_acts, k)
    return pre_acts.gather(1, indices), indices


def encode_top_k(centred: Tensor, W_enc: Tensor, b_enc: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """Do both, by tiles of tokens."""
    n_tiles = max(1, -(-len(centred) * len(W_enc) * centred.element_size() // _TILE_BYTES))
    found = [select(*encode(tile, W_enc, b_enc), k=k) for tile in centred.chunk(n_tiles)]
    values, indices = zip(*found, strict=True)
    return torch.cat(values), torch.cat(indices)


def reconstruction_error(
    x: Tensor, top_acts: Tensor, top_indices: Tensor, W_dec: Tensor, b_pre: Tensor
) -> tuple[Tensor, Tensor]:
    """Return x − x̂ and its squared norm per token."""
    error = x - sparse_decode(top_acts, top_indices, W_dec) - b_pre
    return error, error.square().sum(1)


def latent_gradients(top_acts: Tensor, top_indices: Tensor, gradient: Tensor, centred: Tensor, W_dec: Tensor) -> Three:
    """Return ∂W_dec, ∂W_enc and ∂b_enc."""
    by_acts = sampled_product(gradient, top_indices, W_dec).masked_fill_(top_acts <= 0, 0.0)
    return sums_by_latent(top_acts, by_acts, top_indices, gradient, centred, n_latents=len(W_dec))


def add_latent_gradients(
    top_acts: Tensor, top_indices: Tensor, gradient: Tensor, centred: Tensor, W_dec: Tensor, *into: Tensor
) -> None:
    """Add what `latent_gradients` returns to the three tensors `into`."""
    found = latent_gradients(top_acts, top_indices, gradient, centred, W_dec)
    for tensor, value in zip(into, found, strict=True):
        tensor.add_(value)


def sums_by_latent(
    top_acts: Tensor, by_acts: Tensor, top_indices: Tensor, gradient: Tensor, centred: Tensor, *, n_latents: int
) -> Three:
    """Return Σ act · gradient, Σ ∂act · centred and Σ ∂act, by latent."""
    chosen = by_latent(top_indices, n_latents)
    ones = centred.new_ones(len(centred), 1)
    return (
        sum_by_latent(top_acts, gradient, chosen),
        sum_by_latent(by_acts, centred, chosen),
        # In the order of the tokens too: scatter_add_ on CUDA adds in another order every time.
        sum_by_latent(by_acts, ones, chosen).squeeze(1),
    )


@torch.no_grad()
def adam(weights: Tensor, gradient: Tensor, *state: Tensor, betas: list[float], eps: float, sphere: bool) -> Tensor:
    """Take the step of kernels.adam by plain operations; `state` is (exp_avg, exp_avg_sq, average, scalars)."""
    exp_avg, exp_avg_sq, average, scalars = state
    if sphere:
        gradient = gradient - torch.linalg.vecdot(gradient, weights).unsqueeze(1) * weights
    squares = gradient.square().sum()
    step_size, root, scale, share = scalars
    gradient = gradient * scale
    exp_avg.lerp_(gradient, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    weights.sub_(step_size * exp_avg / (exp_avg_sq.sqrt() / root + eps))
    if sphere:
        weights.div_(torch.linalg.vector_norm(weights, dim=1, keepdim=True))
    average.lerp_(weights, share)
    return squares


@torch.no_grad()
def gradient_squares(weights: Tensor, gradient: Tensor, *, sphere: bool) -> Tensor:
    """Return Σ g², g taken off the unit rows of the weights if `sphere`."""
    if sphere:
        gradient = gradient - torch.linalg.vecdot(gradient, weights).unsqueeze(1) * weights
    return gradient.square().sum()


PLAIN = Operations(
    encode,
    block_maxima,
    select,
    encode_top_k,
    sparse_decode,
    reconstruction_error,
    sampled_product,
    latent_gradients,
    add_latent_gradients,
    sums_by_latent,
    count_tokens_since_fired,
    adam,
    gradient_squares,
)
"""Runs anywhere, and is what each kernel is compared with."""
