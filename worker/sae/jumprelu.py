"""JumpReLU: z = a · 1[a > θ], with a straight-through gradient for θ."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BANDWIDTH = 1e-3
"""Width ε of the rectangle kernel."""


def is_above(
    pre_acts: Float[Tensor, "n_tokens n_latents"], threshold: Float[Tensor, " n_latents"]
) -> Float[Tensor, "n_tokens n_latents"]:
    """Return 1[a > θ], with ∂/∂θ = −1/ε where |a − θ| < ε/2 and no gradient to a.

    Source: Rajamanoharan et al. 2024, JumpReLU SAEs, eq. 11.
    """
    above: Tensor = _IsAbove.apply(pre_acts, threshold)  # type: ignore[no-untyped-call]
    return above


def jump_relu(
    pre_acts: Float[Tensor, "n_tokens n_latents"], threshold: Float[Tensor, " n_latents"]
) -> Float[Tensor, "n_tokens n_latents"]:
    """Return a · 1[a > θ], with ∂/∂θ = −θ/ε where |a − θ| < ε/2 and ∂/∂a = 1[a > θ]."""
    above = is_above(pre_acts, threshold)
    constant = above.detach()
    return pre_acts * constant + threshold.detach() * (above - constant)


class _IsAbove(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre_acts, threshold)
        return (pre_acts > threshold).to(pre_acts.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        pre_acts, threshold = ctx.saved_tensors
        near = (pre_acts - threshold).abs() < BANDWIDTH / 2
        return None, -(gradients[0] * near).sum(0) / BANDWIDTH
