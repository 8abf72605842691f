"""Lead the weight of an L1 penalty, in training, to where L0 is what was asked for; no gradient could."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_INTEGRAL = 8.0
"""e-folds of λ per e-fold of tokens, for an L0 that is off by a factor e. A trained SAE's L0 drifts by some percent per
doubling of tokens, so that the rule follows it on that scale, and λ rests as training does."""
_PROPORTIONAL = 0.5
_LARGEST_STEP = 0.05
"""Of ln λ, in one training step: at the start, where an e-fold of tokens is a few steps."""


class SparsityControl:
    """λ of the penalty as a PI rule in ln λ: with e = ln(L0 / target), within ±1, of a batch of n after t tokens,

    I ← I + min(0.05, 8 · n / t) · e and λ = exp(I + e / 2).

    λ is of the NEXT step. All of it is in `log_coef`, on the device: nothing waits for it, and it is a pure function of
    the batches.
    """

    def __init__(self, target: int, *, device: torch.device | str) -> None:
        """Allocate; `start` sets λ."""
        self.log_target = math.log(target)
        self.log_coef: Float[Tensor, " 2"] = torch.zeros(2, dtype=torch.float64, device=device)
        """I, and ln λ."""

    def start(self, coef: float) -> None:
        """Set λ before the first step."""
        self.log_coef.fill_(math.log(coef))

    @property
    def coef(self) -> Float[Tensor, ""]:
        """λ of the next step."""
        return self.log_coef[1].exp().float()

    @torch.no_grad()
    def follow(self, l0: Float[Tensor, ""], *, n_tokens: int, tokens_seen: int) -> None:
        """Set λ by the mean L0 of a batch of `n_tokens`, the last of `tokens_seen`."""
        error = (l0.double().log() - self.log_target).clamp(-1.0, 1.0)
        self.log_coef[0] += min(_LARGEST_STEP, _INTEGRAL * n_tokens / tokens_seen) * error
        self.log_coef[1] = self.log_coef[0] + _PROPORTIONAL * error
