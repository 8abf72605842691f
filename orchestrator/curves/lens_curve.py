"""The curve of a tuned lens: what one evaluation finds, what training came to, and when it ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.curves.convergence import has_converged, has_diverged
from orchestrator.job_states import Outcome

if TYPE_CHECKING:  # the queue stores points without it
    from orchestrator.config.lens.training import LensConfig

_LEARNT = 0.9
"""Times the logit lens' KL, below which a lens has learnt something; a rate far too low leaves a flat curve above."""


@dataclass(frozen=True)
class LensPoint:
    """What one evaluation on the held-out text found, of the mean of the weights."""

    tokens_seen: int
    """Training tokens so far."""
    kl: float
    """Mean of `kls` over the layers that have a translator: all but the last."""
    kls: list[float | None]
    """KL(final ‖ lens) of next-token probabilities by layer, nats per token; of the last layer 0, None: not finite."""
    loss: float
    """Mean training loss since the last point: the KL of the weights themselves on training text."""
    grad_norm: float
    """Mean global gradient norm since the last point."""
    wall_seconds: float
    """Training time so far, over all attempts."""


@dataclass(frozen=True)
class LensResult:
    """What the training of a lens came to."""

    outcome: Outcome
    tokens_seen: int
    uri: str | None
    """Folder of the lens; None where it diverged."""
    sha256: str | None
    """Its content id."""
    conditions: list[float] | None
    """Condition number of I + A by layer; of the last layer 1."""
    wall_seconds: float


def lens_outcome(
    points: Sequence[tuple[int, float]], config: "LensConfig", *, logit_lens_kl: float, tokens_seen: int
) -> Outcome | None:
    """Return the outcome that a curve of (tokens_seen, kl) means; None while training goes on.

    `logit_lens_kl`: the same mean without translators, which training begins at.
    Source: numerics 6, with KL in place of fvu.
    """
    budget = config.training.max_tokens
    if has_diverged(points, max_tokens=budget, reference=logit_lens_kl):
        return "diverged"
    is_learning = not points or points[-1][1] < _LEARNT * logit_lens_kl
    if config.stop.rule == "plateau" and is_learning and has_converged(points, epsilon=config.stop.epsilon):
        return "converged"
    if tokens_seen < budget:
        return None
    return "max_tokens" if is_learning else "not_learning"


def mean_kl(kls: Sequence[float]) -> float:
    """Return the mean over the layers that have a translator: all but the last."""
    return math.fsum(kls[:-1]) / (len(kls) - 1)
