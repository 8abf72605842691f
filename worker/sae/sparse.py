"""Sparse decode, and an encoder gradient that touches the selected latents alone.

Only the product of all tokens with all latents, which the selection needs, is dense; the rest costs
O(n_tokens · k · d_model).
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def sparse_decode(
    top_acts: Float[Tensor, "n_tokens k"],
    top_indices: Int[Tensor, "n_tokens k"],
    W_dec: Float[Tensor, "n_latents d_model"],
) -> Float[Tensor, "n_tokens d_model"]:
    """Return Σ_j top_acts[:, j] · W_dec[top_indices[:, j]], without b_pre."""
    return functional.embedding_bag(top_indices, W_dec, per_sample_weights=top_acts, mode="sum")


def selected_pre_acts(
    x: Float[Tensor, "n_tokens d_model"],
    b_pre: Float[Tensor, " d_model"],
    W_enc: Float[Tensor, "n_latents d_model"],
    b_enc: Float[Tensor, " n_latents"],
    chosen: tuple[Float[Tensor, "n_tokens n_latents"], Int[Tensor, "n_tokens k"]],
) -> Float[Tensor, "n_tokens k"]:
    """Return (x − b_pre) · W_enc[i] + b_enc[i] at the chosen i, differentiable in x, b_pre, W_enc and b_enc.

    `chosen` is (pre_acts, top_indices): the values are read off the pre-activations that the selection has already
    computed, so the forward pass is a gather; the backward pass is the exact gradient of the line above.
    """
    selected: Tensor = _SelectedPreActs.apply(x, b_pre, W_enc, b_enc, *chosen)  # type: ignore[no-untyped-call]
    return selected


class _SelectedPreActs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, b_pre: Tensor, W_enc: Tensor, b_enc: Tensor, *chosen: Tensor) -> Tensor:
        pre_acts, top_indices = chosen
        ctx.save_for_backward(x - b_pre, W_enc, top_indices)
        return pre_acts.gather(1, top_indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        centred, W_enc, top_indices = ctx.saved_tensors
        per_latent = gradient.new_zeros(len(W_enc)).scatter_add_(0, top_indices.flatten(), gradient.flatten())
        return (
            sparse_decode(gradient, top_indices, W_enc) if ctx.needs_input_grad[0] else None,
            # Summed over the batch first: one product of a vector with W_enc instead of one per token.
            -(per_latent @ W_enc) if ctx.needs_input_grad[1] else None,
            _gather_by_latent(gradient, top_indices, centred, n_latents=len(W_enc)),
            per_latent,
            None,
            None,
        )


def _gather_by_latent(
    weights: Float[Tensor, "n_tokens k"],
    top_indices: Int[Tensor, "n_tokens k"],
    rows: Float[Tensor, "n_tokens d_model"],
    *,
    n_latents: int,
) -> Float[Tensor, "n_latents d_model"]:
    """Return, for each latent, Σ weight · row over the tokens that chose it: the transposed sparse product."""
    latents, order = top_indices.flatten().sort(stable=True)
    starts = torch.searchsorted(latents, torch.arange(n_latents, device=rows.device))
    tokens = order // top_indices.shape[1]
    return functional.embedding_bag(tokens, rows, starts, per_sample_weights=weights.flatten()[order], mode="sum")
