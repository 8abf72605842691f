"""Sparse decode, and an encoder gradient that touches the selected latents alone.

Only the product of all tokens with all latents, which the selection needs, is dense; the rest costs
O(n_tokens · k · d_model).
"""

import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from worker.sae.native.kernels import kernels_for

_SUM = 0
"""The mode of embedding_bag that adds."""


def sparse_decode(
    top_acts: Float[Tensor, "n_tokens k"],
    top_indices: Int[Tensor, "n_tokens k"],
    W_dec: Float[Tensor, "n_latents d_model"],
) -> Float[Tensor, "n_tokens d_model"]:
    """Return Σ_j top_acts[:, j] · W_dec[top_indices[:, j]], without b_pre."""
    return functional.embedding_bag(top_indices, W_dec, per_sample_weights=top_acts, mode="sum")


@torch.no_grad()
def reconstruction_error(
    x: Float[Tensor, "n_tokens d_model"],
    top_acts: Float[Tensor, "n_tokens k"],
    top_indices: Int[Tensor, "n_tokens k"],
    W_dec: Float[Tensor, "n_latents d_model"],
    b_pre: Float[Tensor, " d_model"],
) -> tuple[Float[Tensor, "n_tokens d_model"], Float[Tensor, " n_tokens"]]:
    """Return x − x̂ and its squared norm of each token."""
    if kernels := kernels_for(x, W_dec):
        return kernels.reconstruction_error(x, top_acts, top_indices, W_dec, b_pre)
    error = sparse_decode(top_acts, top_indices, W_dec).add_(b_pre)
    torch.sub(x, error, out=error)
    return error, torch.linalg.vector_norm(error, dim=1).square()


def selected_pre_acts(
    x: Float[Tensor, "n_tokens d_model"],
    b_pre: Float[Tensor, " d_model"],
    W_enc: Float[Tensor, "n_latents d_model"],
    b_enc: Float[Tensor, " n_latents"],
    chosen: tuple[Float[Tensor, "n_tokens k"], Int[Tensor, "n_tokens k"]],
) -> Float[Tensor, "n_tokens k"]:
    """Return (x − b_pre) · W_enc[i] + b_enc[i] at the chosen i, differentiable in x, b_pre, W_enc and b_enc.

    `chosen` is (values, top_indices): the selection has computed the values already, so the forward pass hands them
    on; the backward pass is the exact gradient of the line above.
    """
    selected: Tensor = _SelectedPreActs.apply(x, b_pre, W_enc, b_enc, *chosen)  # type: ignore[no-untyped-call]
    return selected


class _SelectedPreActs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, b_pre: Tensor, W_enc: Tensor, b_enc: Tensor, *chosen: Tensor) -> Tensor:
        values, top_indices = chosen
        ctx.save_for_backward(x - b_pre, W_enc, top_indices)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        centred, W_enc, top_indices = ctx.saved_tensors
        per_latent = gradient.new_zeros(len(W_enc)).scatter_add_(0, top_indices.flatten(), gradient.flatten())
        return (
            sparse_decode(gradient, top_indices, W_enc) if ctx.needs_input_grad[0] else None,
            # Summed over the batch first: one product of a vector with W_enc instead of one per token.
            -(per_latent @ W_enc) if ctx.needs_input_grad[1] else None,
            sum_by_latent(gradient, centred, by_latent(top_indices, len(W_enc))),
            per_latent,
            None,
            None,
        )


class ByLatent(NamedTuple):
    """Where each latent was chosen, in the order of the tokens: the sum over them is the same every time."""

    order: Int[Tensor, " n_chosen"]
    """Places in the flattened (n_tokens, k) matrix, by latent."""
    bounds: Int[Tensor, " n_latents_and_1"]
    """Latent i has the places order[bounds[i] : bounds[i + 1]]."""

    def matrix(self, values: Float[Tensor, " n_chosen"], *, n_tokens: int) -> Tensor:
        """Return the sparse matrix (n_latents, n_tokens) of values given in this order."""
        token = self.order // (len(self.order) // n_tokens)
        shape = len(self.bounds) - 1, n_tokens
        return torch.sparse_csr_tensor(self.bounds.int(), token.int(), values, size=shape, check_invariants=False)


def by_latent(top_indices: Int[Tensor, "n_tokens k"], n_latents: int) -> ByLatent:
    """Group what the tokens chose by latent."""
    if not top_indices.is_cuda and (kernels := kernels_for()):
        return ByLatent(*kernels.by_latent(top_indices.contiguous(), n_latents))
    latents, order = top_indices.flatten().sort(stable=True)
    return ByLatent(order, torch.searchsorted(latents, torch.arange(n_latents + 1, device=latents.device)))


def sum_by_latent(
    weights: Float[Tensor, "n_tokens k"],
    rows: Float[Tensor, "n_tokens d_model"],
    chosen: ByLatent,
    *,
    out: Float[Tensor, "n_latents d_model"] | None = None,
) -> Float[Tensor, "n_latents d_model"]:
    """Return, for each latent, Σ weight · row over the tokens that chose it: the transposed sparse product.

    With `out` into memory that is there: fresh pages for a gradient of 50 MB cost more than its sums (20 ms against 3
    on two cores).
    """
    values = weights.flatten()[chosen.order]
    if out is None or out.is_cuda:
        token = chosen.order // weights.shape[1]
        found = functional.embedding_bag(
            token, rows, chosen.bounds, per_sample_weights=values, mode="sum", include_last_offset=True
        )
        return found if out is None else out.copy_(found)
    return torch.addmm(out, chosen.matrix(values, n_tokens=len(rows)), rows, beta=0.0, out=out)


def sampled_product(
    rows: Float[Tensor, "n_tokens d_model"],
    top_indices: Int[Tensor, "n_tokens k"],
    W: Float[Tensor, "n_latents d_model"],
    chosen: ByLatent | None = None,
) -> Float[Tensor, "n_tokens k"]:
    """Return ⟨row, W[i]⟩ at each chosen latent i, without the copy of n_tokens · k rows that a gather would make.

    With W_dec and ∂/∂x̂ it is the gradient in the activations, with W_enc and x − b_pre the pre-activations. On a CPU
    latent by latent: the rows of a batch stay in the cache and those of W pass by once (3 ms against 12 token by token
    at D = 768, n = 16,384, k = 32, 2,048 tokens and two cores).
    """
    n_tokens, k = top_indices.shape
    if rows.is_cuda or torch.compiler.is_compiling():
        token = torch.arange(n_tokens, device=rows.device)
        product = torch.ops.aten._embedding_bag_per_sample_weights_backward
        by_token: Tensor = product(rows, W, top_indices.flatten(), token * k, token.repeat_interleave(k), _SUM)
        return by_token.view(n_tokens, k)
    chosen = chosen or by_latent(top_indices, len(W))
    wanted = chosen.matrix(W.new_zeros(top_indices.numel()), n_tokens=n_tokens)
    found = torch.sparse.sampled_addmm(wanted, W, rows.T, beta=0.0).values()
    return torch.empty_like(found).scatter_(0, chosen.order, found).view(n_tokens, k)


with warnings.catch_warnings():  # torch says once, of its first compressed tensor, that these may still change
    warnings.simplefilter("ignore", UserWarning)
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))
