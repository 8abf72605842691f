"""Adam and what surrounds it: projection, clipping, unit decoder rows, average of the weights, learning rate."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config import JobConfig, OptimizerConfig
from worker.sae.model import SparseAutoencoder


class _Measured(NamedTuple):
    """Where the best learning rate was measured, and its exponents around that place."""

    factor: float = 4.9
    d_model: int = 128
    d_model_exponent: float = -0.04
    batch_tokens: int = 1024
    batch_exponent: float = 0.56
    max_tokens: int = 2**21
    max_exponent: float = -0.45


_MEASURED = _Measured()
_LARGEST_LR = 0.02
"""Above it latents died in every sweep that was looked at."""


def paper_lr(n_latents: int) -> float:
    """Return 2e-4 / √(n_latents / 2^14). Source: Gao et al. 2024, figure 3: GPT-2 small, batches of 2^17 tokens."""
    return 2e-4 / math.sqrt(n_latents / 2**14)


def auto_factor(d_model: int, *, batch_tokens: int, max_tokens: int) -> float:
    """Return c of `lr: auto`: c = 4.9 · (d_model / 128)^−0.04 · (batch_tokens / 1024)^0.56 · (max_tokens / 2^21)^−0.45.

    Measured with examples/learning-rate.yaml (n = 512, k = 8; six rates a factor of two apart, the best by a parabola
    in log lr). Best lr: 0.0038, 0.0084, 0.018 at batches of 256, 1,024, 4,096 tokens, the last beyond the largest rate
    tried, 0.016; 0.0084 at both d_model 128 and 512 (another site), 0.0091 at 64 (a small Llama, by overrides); 0.0084
    at a budget of 2^19 tokens, 0.0055 at 2^21 (three rates, by overrides). One seed each. The exponent of max_tokens is
    not fitted: it lies between the −0.3 of those two and the −0.53 at which the paper's own setting gives its c = 1.
    """
    at = _MEASURED
    width: float = (d_model / at.d_model) ** at.d_model_exponent
    batch: float = (batch_tokens / at.batch_tokens) ** at.batch_exponent
    budget: float = (max_tokens / at.max_tokens) ** at.max_exponent
    return at.factor * width * batch * budget


def auto_lr(config: JobConfig, d_model: int) -> float:
    """Return c · 2e-4 / √(n_latents / 2^14), 0.02 at most."""
    training = config.training
    factor = auto_factor(d_model, batch_tokens=training.batch_tokens, max_tokens=training.max_tokens)
    return min(_LARGEST_LR, factor * paper_lr(config.sae.latents(d_model)))


def base_lr(config: JobConfig, d_model: int) -> float:
    """Return the learning rate before warm-up and decay: the config's, or auto."""
    return auto_lr(config, d_model) if config.optimizer.lr == "auto" else config.optimizer.lr


def lr_factor(config: JobConfig, tokens_seen: int) -> float:
    """Return what the learning rate is multiplied by in the step that starts at `tokens_seen`; never 0."""
    optimizer, training = config.optimizer, config.training
    factor = 1.0
    if optimizer.warmup_tokens:
        factor = min(factor, (tokens_seen + training.batch_tokens) / optimizer.warmup_tokens)
    if optimizer.decay_tokens:
        factor = min(factor, (training.max_tokens - tokens_seen) / optimizer.decay_tokens)
    return factor


class Optimizer:
    """Adam on a sphere: W_dec rows have unit norm after every step.

    One step: gradients → project ∂W_dec off each row → optional global-norm clip → Adam, bias-corrected → unit rows →
    average ← β · average + (1 − β) · weights.
    """

    def __init__(self, model: SparseAutoencoder, config: OptimizerConfig, *, lr: float) -> None:
        """Start with zero moments and a zero average."""
        self.model = model
        self.config = config
        self.lr = lr
        self.n_steps = 0
        self.adam = torch.optim.Adam(model.parameters(), lr=lr, betas=config.betas, eps=config.eps, fused=True)
        self.average = {name: torch.zeros_like(value) for name, value in model.named_parameters()}

    @torch.no_grad()
    def step(self, *, factor: float = 1.0) -> Float[Tensor, ""]:
        """Take one step from the gradients that are there, clear them, and return their norm (projected, unclipped)."""
        project(self.model)
        norm = self._clip()
        self.adam.param_groups[0]["lr"] = self.lr * factor
        self.adam.step()
        self.adam.zero_grad()
        unit_rows(self.model.W_dec)
        for name, value in self.model.named_parameters():
            self.average[name].lerp_(value, 1 - self.config.ema)
        self.n_steps += 1
        return norm

    @torch.no_grad()
    def averaged(self) -> dict[str, Tensor]:
        """Return the bias-corrected average of the weights, decoder rows at unit norm; before any step, the weights."""
        if self.n_steps == 0:
            return {name: value.detach().clone() for name, value in self.model.named_parameters()}
        weights = {name: value / (1 - self.config.ema**self.n_steps) for name, value in self.average.items()}
        unit_rows(weights["W_dec"])
        return weights

    def tensors(self) -> dict[str, Tensor]:
        """Return Adam's moments and the running average, by name."""
        found = {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.adam.state.get(parameter, {}).items():
                found[f"adam.{key}.{name}"] = value
        return found

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], *, n_steps: int) -> None:
        """Take back what `tensors` returned after `n_steps` steps."""
        self.n_steps = n_steps
        for name, value in self.average.items():
            value.copy_(tensors[f"average.{name}"])
        keys = ("step", "exp_avg", "exp_avg_sq") if n_steps else ()
        states = {
            index: {key: tensors[f"adam.{key}.{name}"].clone() for key in keys}
            for index, (name, _) in enumerate(self.model.named_parameters())
        }
        self.adam.load_state_dict({**self.adam.state_dict(), "state": states if n_steps else {}})

    def _clip(self) -> Float[Tensor, ""]:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        if self.config.clip_norm is not None:
            # The tiny term keeps a zero gradient from dividing by zero.
            scale = (self.config.clip_norm / (norm + 1e-30)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(scale)
        return norm


@torch.no_grad()
def project(model: SparseAutoencoder) -> None:
    """Take the component parallel to each decoder row out of ∂W_dec: it would only change the row's length."""
    gradient = model.W_dec.grad
    if gradient is not None:
        parallel = torch.linalg.vecdot(gradient, model.W_dec).unsqueeze(1)
        gradient.addcmul_(parallel, model.W_dec, value=-1)


@torch.no_grad()
def unit_rows(W_dec: Float[Tensor, "n_latents d_model"]) -> None:
    """Scale every row to unit norm, in place."""
    W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
