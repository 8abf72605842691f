"""The learning rate of a step: what `auto` means, warm-up and decay."""

import math
from typing import NamedTuple

from orchestrator.config.job import JobConfig


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
_LARGEST_MOVE = _LARGEST_LR * math.sqrt(128)
"""The most that one step may move a row of unit norm, as lr · √d_model: 0.226."""


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
    With `ema: auto` (2026-11-27; n 512 and 2,048, k 8 and 32, 2^17 tokens in batches of 512, one seed) it was the best
    of itself, half and twice that in three of four cells; in the fourth twice that gave 3% less fvu.
    """
    at = _MEASURED
    width: float = (d_model / at.d_model) ** at.d_model_exponent
    batch: float = (batch_tokens / at.batch_tokens) ** at.batch_exponent
    budget: float = (max_tokens / at.max_tokens) ** at.max_exponent
    return at.factor * width * batch * budget


def auto_lr(config: JobConfig, d_model: int) -> float:
    """Return c · 2e-4 / √(n_latents / 2^14); at most 0.02, and at most what `largest_stable_lr` returns."""
    training = config.training
    factor = auto_factor(d_model, batch_tokens=training.batch_tokens, max_tokens=training.max_tokens)
    n_steps = -(-training.max_tokens // training.batch_tokens)
    stable = largest_stable_lr(d_model, k=config.sae.k, n_steps=n_steps)
    return min(_LARGEST_LR, stable, factor * paper_lr(config.sae.latents(d_model)))


def largest_stable_lr(d_model: int, *, k: int, n_steps: int) -> float:
    """Return 0.226 · min(1, n_steps / k) / √d_model: beyond it few steps end with more fvu than they began with.

    Adam's first steps move every element of a row by the learning rate: a row, which has unit norm, by lr · √d_model,
    and the rows of the k latents of a token in much the same direction. A run of many steps recovers from that. The
    best lr · √d_model was 0.11 to 0.32 from 16 to 320 steps, at d_model 128 and 768, k 8 to 32, n 512 to 4,096; of 4 to
    8 steps 0.06 to 0.23 for k = 8, and 0.03 to 0.11 for k = 16 and 32, n up to 16,384.
    """
    return _LARGEST_MOVE * min(1.0, n_steps / k) / math.sqrt(d_model)


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
