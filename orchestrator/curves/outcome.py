"""How a job ends: a pure function of its curve and config, for the trainer and for stored curves alike."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.config.activation_functions import ACTIVATIONS
from orchestrator.curves.convergence import has_converged, has_diverged, learns
from orchestrator.job_states import Outcome

if TYPE_CHECKING:
    from orchestrator.config.job import JobConfig


def outcome_of(
    points: Sequence[tuple[int, float]], config: "JobConfig", *, untrained_fvu: float | None, tokens_seen: int
) -> Outcome | None:
    """Return the outcome that a curve of (tokens_seen, fvu) means; None while training goes on.

    With `optimizer.decay_tokens` a job trains its whole budget, so that the decay takes place, and has converged where
    its curve was flat before the decay began.
    Source: numerics 6.
    """
    budget, stop = config.training.max_tokens, config.stop
    reference = reference_fvu(config, untrained_fvu)
    if has_diverged(points, max_tokens=budget, reference=reference):
        return "diverged"
    is_over, is_learning = tokens_seen >= budget, not points or learns(points, reference=reference)
    may_stop = stop.rule == "plateau" and is_learning and (is_over or not config.optimizer.decay_tokens)
    if may_stop and has_converged(at_constant_rate(points, config), epsilon=stop.epsilon):
        return "converged"
    if not is_over:
        return None
    return "max_tokens" if is_learning else "not_learning"


def at_constant_rate(points: Sequence[tuple[int, float]], config: "JobConfig") -> list[tuple[int, float]]:
    """Return the points after the warm-up and before the decay: what happens in them is the schedule's doing."""
    warmup, decay = config.optimizer.warmup_tokens, config.optimizer.decay_tokens
    return constant_rate(points, warmup_tokens=warmup, decay_tokens=decay, max_tokens=config.training.max_tokens)


def constant_rate(
    points: Sequence[tuple[int, float]], *, warmup_tokens: int, decay_tokens: int, max_tokens: int
) -> list[tuple[int, float]]:
    """Return what `at_constant_rate` does, by the lengths of a schedule."""
    last = max_tokens - decay_tokens if decay_tokens else math.inf
    return [(tokens, fvu) for tokens, fvu in points if warmup_tokens <= tokens <= last]


def reference_fvu(config: "JobConfig", untrained_fvu: float | None) -> float | None:
    """Return the fvu that a trained SAE must be below: that of its untrained weights, where the two can be compared.

    They can where both keep k latents per token. Elsewhere training changes L0, often for a higher fvu; then it is not
    below 1, which the mean alone scores.
    """
    if untrained_fvu is None or not math.isfinite(untrained_fvu):
        return None
    return untrained_fvu if ACTIVATIONS[config.sae.activation].selects_per_token else max(1.0, untrained_fvu)
