"""What training minimises: reconstruction, AuxK for dead latents, a sparsity penalty for relu and jumprelu."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from orchestrator.config.job import SaeConfig
from worker.sae.model import Encoded, SparseAutoencoder
from worker.sae.sparse import selected_pre_acts, sparse_decode
from worker.sae.topk import top_k


class Losses(NamedTuple):
    """The parts of a batch's loss."""

    total: Float[Tensor, ""]
    """Reconstruction + α · AuxK + penalty."""
    aux: Float[Tensor, " 2"]
    """AuxK before its weight, and what it is where nothing is predicted; exactly 0 with no dead latent."""


def losses(
    model: SparseAutoencoder,
    x: Float[Tensor, "n_tokens d_model"],
    encoded: Encoded,
    *,
    config: SaeConfig,
    variances: Sequence[float],
    dead: Bool[Tensor, " n_latents"] | None,
    sparsity_coef: float | Float[Tensor, ""] | None = None,
) -> Losses:
    """Return the losses of a batch encoded with `k = model.k_widest`.

    `variances` are v = mean ‖x − μ‖² of the fixed sample, one of each layer that the batch is of; `dead` marks the dead
    latents, None if there are none.
    `sparsity_coef` is λ where training leads it.
    """
    total = x.new_zeros(())
    reconstructions = []
    for k, weight in model.reconstructions:
        code = narrowed(encoded, k)
        reconstructions.append(model.decode(code.top_acts, code.top_indices))
        total = total + weight * reconstruction_loss(x, reconstructions[-1], variances=variances)
    if sparsity_coef is None:  # auto, and not led: the penalty itself holds the target
        sparsity_coef = 1.0 if config.sparsity_coef == "auto" else config.sparsity_coef
    penalty = model.function.penalty(encoded.pre_acts, encoded.top_acts, model.own, model.W_dec)
    total = total + sparsity_coef * penalty
    if dead is None or config.aux_coef == 0:
        return Losses(total, total.new_zeros(2))
    aux = aux_loss(model, x, encoded.pre_acts, error=(x - reconstructions[0]).detach(), dead=dead)
    return Losses(total + config.aux_coef * aux[0], aux)


def narrowed(encoded: Encoded, k: int) -> Encoded:
    """Keep the k largest latents of each token; a dense code stays whole."""
    if encoded.top_indices is None:
        return encoded
    return Encoded(encoded.pre_acts, encoded.top_acts[:, :k], encoded.top_indices[:, :k])


def reconstruction_loss(
    x: Float[Tensor, "n_tokens d_model"],
    reconstruction: Float[Tensor, "n_tokens d_model"],
    *,
    variances: Sequence[float],
) -> Float[Tensor, ""]:
    """Return the mean over layers of Σ ‖x − x̂‖² / (n_tokens · v): every layer weighs alike, whatever its v.

    The rows are those of the first layer, then as many of the next. Source: Lawson et al. 2024, `mse_loss` of mlsae.
    """
    by_layer = (x - reconstruction).square().chunk(len(variances))
    parts = [squares.sum() / (len(x) * v) for squares, v in zip(by_layer, variances, strict=True)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()


def aux_loss(
    model: SparseAutoencoder,
    x: Float[Tensor, "n_tokens d_model"],
    pre_acts: Float[Tensor, "n_tokens n_latents"],
    *,
    error: Float[Tensor, "n_tokens d_model"],
    dead: Bool[Tensor, " n_latents"],
) -> Float[Tensor, " 2"]:
    """Return ‖e − ê‖² / ‖e − mean_batch(e)‖², ê = z_aux · W_dec without a bias, and the same of ê = 0 (`aux_share`).

    z_aux is the ReLU of the k_aux largest pre-activations among the dead latents, all of them if they are fewer. The
    gradient reaches W_enc, b_enc and W_dec at dead latents and nothing else: `error` is a constant, and so is b_pre.
    Source: Gao et al. 2024, appendix A.2.
    """
    among, b_pre = dead.nonzero().squeeze(1), model.b_pre.detach()
    pre_acts = pre_acts.detach()[:, among]
    if model.product_dtype is not None:  # rounded: good for candidates only
        pre_acts = functional.linear(x - b_pre, model.W_enc.detach()[among], model.b_enc.detach()[among])
    found = top_k(pre_acts, min(model.k_aux, len(among)))
    values, top_indices = pre_acts.gather(1, found), among[found]
    selected = selected_pre_acts(x, b_pre, model.W_enc, model.b_enc, (values, top_indices))
    return aux_share(error, sparse_decode(selected.relu(), top_indices, model.W_dec))


def aux_share(
    error: Float[Tensor, "n_tokens d_model"], found: Float[Tensor, "n_tokens d_model"]
) -> Float[Tensor, " 2"]:
    """Return ‖e − ê‖² and ‖e‖², each / ‖e − mean_batch(e)‖²; 0 where the first is not finite.

    The second, a little above 1, is what predicting nothing scores: AuxK has learned what the first is below it.
    """
    missing, nothing = (error - found).square().sum(), error.square().sum()
    spread = (error - error.mean(0)).square().sum()
    # A branch on the quotient alone would let 0 · ∞ into the gradient: the divisor is made safe first.
    usable = (spread > 0) & missing.isfinite()
    return torch.where(usable, torch.stack([missing, nothing]) / spread.where(usable, 1.0), 0.0)
