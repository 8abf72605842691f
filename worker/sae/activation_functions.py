"""The activation functions of an SAE: what each keeps of the pre-activations, what it learns, what it adds to the loss.

`topk` and `multi_topk` select by index (`topk.py`, `SparseAutoencoder.encode`) and need nothing of this but a name in
`FUNCTIONS`; what a training step may do with a function is said in `orchestrator.config.activation_functions`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from orchestrator.config.activation_functions import Activation
from orchestrator.config.job import SaeConfig
from worker.sae.topk import batch_top_k

_FIRST_THRESHOLD = 1e-3
"""θ of JumpReLU before it is measured on a sample."""
_LEAST_THRESHOLD = 1e-6

BANDWIDTH = 1e-3
"""Width ε of the rectangle kernel of JumpReLU's straight-through gradient."""

Tensors = Mapping[str, Tensor]
"""A function's own tensors, by the names under which the model registers them."""


class ActivationFunction:
    """z = f(a) of pre-activations a: (n_tokens, n_latents) to values ≥ 0 of the same shape.

    The methods here are those of a function without tensors of its own and without a penalty. `fit`, `rescale` and
    `calibrate` change the tensors in `own` in place; gradients flow through `activate` and `penalty` alone.
    """

    first_coef: float | None = None
    """√v times the weight of the penalty that `sae.target_l0` starts from; None where no weight is led."""

    def new_tensors(self, n_latents: int) -> dict[str, Tensor]:
        """Return the function's own tensors: a Parameter is trained, anything else is a buffer."""
        return {}

    def activate(
        self, pre_acts: Float[Tensor, "n_tokens n_latents"], own: Tensors, *, k: int, training: bool
    ) -> Float[Tensor, "n_tokens n_latents"]:
        """Return f(a)."""
        return pre_acts.relu()

    def penalty(
        self,
        pre_acts: Float[Tensor, "n_tokens n_latents"],
        acts: Float[Tensor, "n_tokens kept"],
        own: Tensors,
        W_dec: Float[Tensor, "n_latents d_model"],
    ) -> Float[Tensor, ""]:
        """Return what training adds to the loss, before the weight `sae.sparsity_coef`."""
        return acts.new_zeros(())

    def fit(self, pre_acts: Float[Tensor, "n_tokens n_latents"], own: Tensors, *, k: int) -> None:
        """Set the function's tensors so that k latents per token are active on a sample."""

    def rescale(self, scale: Float[Tensor, ""], own: Tensors) -> None:
        """Follow pre-activations that were multiplied by `scale`."""

    def calibrate(self, pre_acts: Float[Tensor, "n_tokens n_latents"], own: Tensors, *, k: int) -> None:
        """Set what only evaluation needs, so that k latents per token are active on a training batch."""


class Relu(ActivationFunction):
    """z = max(a, 0), with the penalty mean over tokens of Σ z · ‖W_dec row‖."""

    first_coef = 0.1

    def penalty(
        self,
        pre_acts: Float[Tensor, "n_tokens n_latents"],
        acts: Float[Tensor, "n_tokens n_latents"],
        own: Tensors,
        W_dec: Float[Tensor, "n_latents d_model"],
    ) -> Float[Tensor, ""]:
        """Return mean over tokens of Σ z · ‖W_dec row‖."""
        per_token: Tensor = acts @ torch.linalg.vector_norm(W_dec, dim=1)
        return per_token.mean()


class JumpRelu(ActivationFunction):
    """z = a · 1[a > θ] with a trained θ per latent, and the penalty L0. Source: Rajamanoharan et al. 2024."""

    def new_tensors(self, n_latents: int) -> dict[str, Tensor]:
        """Return log θ."""
        return {"log_threshold": nn.Parameter(torch.full((n_latents,), _FIRST_THRESHOLD).log())}

    def activate(
        self, pre_acts: Float[Tensor, "n_tokens n_latents"], own: Tensors, *, k: int, training: bool
    ) -> Float[Tensor, "n_tokens n_latents"]:
        """Return a · 1[a > θ]."""
        return jump_relu(pre_acts, own["log_threshold"].exp())

    def penalty(
        self,
        pre_acts: Float[Tensor, "n_tokens n_latents"],
        acts: Float[Tensor, "n_tokens n_latents"],
        own: Tensors,
        W_dec: Float[Tensor, "n_latents d_model"],
    ) -> Float[Tensor, ""]:
        """Return the mean L0, with a straight-through gradient for θ."""
        return is_above(pre_acts, own["log_threshold"].exp()).sum(1).mean()

    def fit(self, pre_acts: Float[Tensor, "n_tokens n_latents"], own: Tensors, *, k: int) -> None:
        """Set one θ for all latents: the smallest of the k · n_tokens largest pre-activations."""
        kept = pre_acts.flatten().topk(k * len(pre_acts)).values
        own["log_threshold"].fill_(kept[-1].clamp_min(_LEAST_THRESHOLD).log())

    def rescale(self, scale: Float[Tensor, ""], own: Tensors) -> None:
        """Multiply θ."""
        own["log_threshold"].add_(scale.log())


class JumpReluAtL0(JumpRelu):
    """JumpReLU with the penalty (L0 / target − 1)², of weight 1: a fixed loss that is least at an L0 of about `target`.

    Source: Rajamanoharan et al. 2024, JumpReLU SAEs, section 7.
    """

    def __init__(self, target: int) -> None:
        """Take the L0 to train to."""
        self.target = target

    def penalty(
        self,
        pre_acts: Float[Tensor, "n_tokens n_latents"],
        acts: Float[Tensor, "n_tokens n_latents"],
        own: Tensors,
        W_dec: Float[Tensor, "n_latents d_model"],
    ) -> Float[Tensor, ""]:
        """Return (mean L0 / target − 1)², with a straight-through gradient for θ."""
        return (super().penalty(pre_acts, acts, own, W_dec) / self.target - 1).square()

    def fit(self, pre_acts: Float[Tensor, "n_tokens n_latents"], own: Tensors, *, k: int) -> None:
        """Set one θ for twice the target: L0 halves in the first steps, and rises again slowly."""
        super().fit(pre_acts, own, k=min(2 * self.target, pre_acts.shape[1]))


class BatchTopK(ActivationFunction):
    """z keeps the k · n_tokens largest values of a batch; in evaluation those ≥ a threshold.

    The threshold is that of the weights that are evaluated, on the batch they were last trained on. A running mean of
    training's thresholds lags behind them: L0 was 6.8 at k = 8 after some hundred steps, and fvu a tenth higher.
    """

    def new_tensors(self, n_latents: int) -> dict[str, Tensor]:
        """Return the threshold of evaluation."""
        return {"threshold": torch.zeros(())}

    def activate(
        self, pre_acts: Float[Tensor, "n_tokens n_latents"], own: Tensors, *, k: int, training: bool
    ) -> Float[Tensor, "n_tokens n_latents"]:
        """Return max(a, 0) where it is kept, else 0."""
        kept = batch_top_k(pre_acts, k) if training else pre_acts >= own["threshold"]
        return pre_acts.relu() * kept

    def calibrate(self, pre_acts: Float[Tensor, "n_tokens n_latents"], own: Tensors, *, k: int) -> None:
        """Set the threshold to the smallest of the k · n_tokens largest pre-activations; to 0 where that is below."""
        own["threshold"].copy_(pre_acts.flatten().topk(k * len(pre_acts)).values[-1].clamp_min(0.0))


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


FUNCTIONS: dict[Activation, ActivationFunction] = {
    "topk": ActivationFunction(),
    "multi_topk": ActivationFunction(),
    "batchtopk": BatchTopK(),
    "relu": Relu(),
    "jumprelu": JumpRelu(),
}
"""By the name that `sae.activation` gives it."""


def activation_function(config: SaeConfig) -> ActivationFunction:
    """Return the activation function of a config."""
    if config.activation == "jumprelu" and config.target_l0 is not None:
        return JumpReluAtL0(config.target_l0)
    return FUNCTIONS[config.activation]
