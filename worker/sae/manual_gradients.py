"""The losses and all gradients, written by hand: what `loss.losses` gives under autograd where tokens keep k latents.

Floor: the encoder's product, 2·B·D·n operations; the rest is O(B·k·D). Nothing of n_tokens × k × d_model ever exists.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from orchestrator.config.job import SaeConfig
from worker.sae.model import SparseAutoencoder
from worker.sae.native.kernels import kernels_for
from worker.sae.sparse import by_latent, reconstruction_error, sampled_product, sum_by_latent
from worker.sae.tiled_encode import Selected
from worker.sae.topk import keep_top_k_, top_values

_DENSE = 5
"""Up to this many times k_aux dead latents AuxK is cheaper as dense products over them: of 1,024, 1,664 and 4,096 dead
ones 94, 163 and 410 ms, against 116, 128 and 206 by what is selected (k_aux = 256, D = 768, 2,048 tokens, 2 cores)."""

_DENSE_IN_C = 16
"""The same with the kernels in C, which keep the k_aux largest of 1,638 dead latents in 1.9 ms instead of 24. Steps
with 1,638, 4,096 and 8,192 dead ones took 331 to 383, 451 to 466 and 672 ms, and 412, 448 and 470 by what is
selected."""

_ROUND = 64
"""Dense products over the dead latents are filled up to a multiple of this, with latents that do nothing: 6% faster."""


class Weights(NamedTuple):
    """The parameters, or a gradient of each."""

    W_enc: Float[Tensor, "n_latents d_model"]
    b_enc: Float[Tensor, " n_latents"]
    W_dec: Float[Tensor, "n_latents d_model"]
    b_pre: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, model: SparseAutoencoder) -> "Weights":
        """Return a model's parameters."""
        return cls(model.W_enc, model.b_enc, model.W_dec, model.b_pre)

    def like(self) -> "Weights":
        """Return memory for a gradient of each."""
        return Weights(*(torch.empty_like(value) for value in self))


class LossTerms(NamedTuple):
    """What the loss is made of."""

    parts: tuple[tuple[int, float], ...]
    """(k, weight) of each reconstruction: one, and for multi_topk a second from 4k latents."""
    k_aux: int
    aux_coef: float
    variances: tuple[float, ...]
    """v of each layer: mean ‖x − μ‖² of the fixed sample; a batch has the rows of one, then as many of the next."""

    @classmethod
    def of(cls, model: SparseAutoencoder, config: SaeConfig, *, variances: tuple[float, ...]) -> "LossTerms":
        """Return a model's."""
        return cls(model.reconstructions, model.k_aux, config.aux_coef, variances)


class Aux(NamedTuple):
    """AuxK's forward pass, over the dead latents alone."""

    loss: Float[Tensor, " 2"]
    """As `loss.aux_share` returns it."""
    among: Int[Tensor, " n_dead"]
    """The dead latents."""
    acts: Float[Tensor, "n_tokens chosen"]
    """z_aux of those in `indices`."""
    indices: Int[Tensor, "n_tokens chosen"] | None
    """Places in `among`; None: all of them, in order."""
    gradient: Float[Tensor, "n_tokens d_model"]
    """∂(α · loss)/∂ê."""


class ForwardResult(NamedTuple):
    """The losses of a batch, and what their gradients are made of."""

    total: Float[Tensor, ""]
    aux: Float[Tensor, " 2"]
    gradients: list[Float[Tensor, "n_tokens d_model"]]
    """∂total/∂x̂ of each reconstruction."""
    dead: Aux | None


@torch.no_grad()
def forward(
    weights: Weights,
    x: Float[Tensor, "n_tokens d_model"],
    selected: Selected,
    *,
    terms: LossTerms,
    dead: Bool[Tensor, " n_latents"] | None,
) -> ForwardResult:
    """Return the losses of a batch whose latents are selected; `dead` marks the dead ones, None if there are none."""
    with_aux = dead is not None and terms.aux_coef > 0
    total, first_error, gradients = x.new_zeros(()), x, []
    for i, (k, weight) in enumerate(terms.parts):
        error, squares = reconstruction_error(x, *selected.narrowed(k), weights.W_dec, weights.b_pre)
        gradient = error
        if i == 0 and with_aux:
            first_error, gradient = error, torch.empty_like(error)
        layers = (_by_layer(rows, len(terms.variances)) for rows in (error, squares, gradient))
        for part, square, out, variance in zip(*layers, terms.variances, strict=True):
            total = total + weight * square.sum(dtype=x.dtype) / (len(x) * variance)
            torch.mul(part, -2 * weight / (len(x) * variance), out=out)
        gradients.append(gradient)
    if dead is None or not with_aux:
        return ForwardResult(total, total.new_zeros(2), gradients, None)
    aux = _aux(weights, selected, first_error, terms=terms, dead=dead)
    return ForwardResult(total + terms.aux_coef * aux.loss[0], aux.loss, gradients, aux)


@torch.no_grad()
def backward(weights: Weights, selected: Selected, found: ForwardResult, *, terms: LossTerms, out: Weights) -> Weights:
    """Write the gradient of `found.total` in every parameter into `out`, and return it."""
    parts = [(k, gradient) for (k, _), gradient in zip(terms.parts, found.gradients, strict=True)]
    if kernels := kernels_for(selected.top_acts, selected.centred, weights.W_dec, *found.gradients):
        code = selected.top_acts, selected.top_indices
        kernels.gradients(parts, code, selected.centred, (weights.W_enc, weights.W_dec), out)
    else:
        _plain_backward(parts, weights, selected, out)
    if found.dead is not None:
        _add_aux(out, weights, selected, found.dead)
    return out


def _plain_backward(parts: Sequence[tuple[int, Tensor]], weights: Weights, selected: Selected, out: Weights) -> None:
    """Do what `Kernels.gradients` does."""
    by_acts = torch.zeros_like(selected.top_acts)
    out.b_pre.zero_()
    for i, (k, gradient) in enumerate(parts):
        acts, indices = selected.narrowed(k)
        chosen = by_latent(indices, len(weights.W_enc))  # of the last round: the widest selection
        by_acts[:, :k] += sampled_product(gradient, indices, weights.W_dec, chosen)
        if i == 0:
            sum_by_latent(acts, gradient, chosen, out=out.W_dec)
        else:
            out.W_dec.add_(sum_by_latent(acts, gradient, chosen))
        out.b_pre.add_(gradient.sum(0))
    by_acts.masked_fill_(selected.top_acts <= 0, 0.0)
    sum_by_latent(by_acts, selected.centred, chosen, out=out.W_enc)
    out.b_enc.zero_().scatter_add_(0, selected.top_indices.flatten(), by_acts.flatten())
    # Summed over the batch first: one product of a vector with W_enc instead of one per token.
    out.b_pre.sub_(out.b_enc @ weights.W_enc)


def _by_layer(rows: Tensor, n_layers: int) -> Sequence[Tensor]:
    return (rows,) if n_layers == 1 else rows.chunk(n_layers)


def listed(dead: Bool[Tensor, " n_latents"], k_aux: int) -> Int[Tensor, " n_listed"]:
    """Return the dead latents as AuxK wants them: few enough for dense products are filled up with the first one."""
    among = dead.nonzero().squeeze(1)
    n_more = -len(among) % _ROUND if _is_dense(len(among), k_aux) else 0
    return torch.cat([among, among[:1].expand(n_more)])


def _is_dense(n_dead: int, k_aux: int) -> bool:
    """Say whether AuxK is done by dense products over so many dead latents."""
    return n_dead <= k_aux * (_DENSE_IN_C if kernels_for() else _DENSE)


def _aux(
    weights: Weights,
    selected: Selected,
    error: Float[Tensor, "n_tokens d_model"],
    *,
    terms: LossTerms,
    dead: Bool[Tensor, " n_latents"],
) -> Aux:
    """Do what `loss.aux_loss` does."""
    n_dead, indices = int(dead.sum()), None
    among = listed(dead, terms.k_aux)
    acts = selected.pre_acts_of(among, weights.W_enc, weights.b_enc)
    if not _is_dense(n_dead, terms.k_aux):
        acts, indices = top_values(acts, terms.k_aux)
        acts.relu_()
    else:
        acts[:, n_dead:] = 0.0
        keep_top_k_(acts[:, :n_dead], terms.k_aux)
    W_dead = weights.W_dec[among]
    if indices is None:
        left = torch.addmm(error, acts, W_dead, alpha=-1)
    else:
        left, _ = reconstruction_error(error, acts, indices, W_dead, error.new_zeros(error.shape[1]))
    found, spread = torch.stack([_squared(left), _squared(error)]), _squared(error - error.mean(0))
    if not (spread > 0 and found[0].isfinite()):
        return Aux(torch.zeros_like(found), among, acts, indices, left.zero_())
    return Aux(found / spread, among, acts, indices, left.mul_(-2 * terms.aux_coef / spread))


def _squared(rows: Tensor) -> Float[Tensor, ""]:
    """Return the sum of all squares, without a matrix of them."""
    norm: Tensor = torch.linalg.vector_norm(rows)
    return norm.square()


def _add_aux(out: Weights, weights: Weights, selected: Selected, aux: Aux) -> None:
    """Add AuxK's gradients to the rows of the dead latents, which have no other: they did not fire."""
    W_dec = weights.W_dec[aux.among]
    rows: tuple[Tensor, Tensor, Tensor]
    if aux.indices is not None and (kernels := kernels_for(aux.acts, aux.gradient, W_dec)):
        rows = torch.empty_like(W_dec), W_dec.new_empty(len(W_dec)), torch.empty_like(W_dec)
        parts = [(aux.acts.shape[1], aux.gradient)]
        kernels.gradients(parts, (aux.acts, aux.indices), selected.centred, (W_dec, W_dec), (*rows, None))
    elif aux.indices is None:
        by_acts = (aux.gradient @ W_dec.T).masked_fill_(aux.acts <= 0, 0.0)
        rows = by_acts.T @ selected.centred, by_acts.sum(0), aux.acts.T @ aux.gradient
    else:
        chosen = by_latent(aux.indices, len(W_dec))
        by_acts = sampled_product(aux.gradient, aux.indices, W_dec, chosen).masked_fill_(aux.acts <= 0, 0.0)
        b_enc = by_acts.new_zeros(len(W_dec)).scatter_add_(0, aux.indices.flatten(), by_acts.flatten())
        rows = sum_by_latent(by_acts, selected.centred, chosen), b_enc, sum_by_latent(aux.acts, aux.gradient, chosen)
    for gradient, more in zip((out.W_enc, out.b_enc, out.W_dec), rows, strict=True):
        gradient.index_add_(0, aux.among, more)
