"""Intervals of what is measured over contexts: whole contexts are drawn again, with replacement.

The tokens of one context share its text and see one another: they are no independent draws, and an interval from
tokens drawn one by one would be too narrow. What is resampled are the sums of each context.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from worker.evaluation.metric import Draws, Score

RESAMPLES = 1000
_ENDS = (0.05, 0.95)
_MOST_UNITS = 2048
"""That are drawn: more would cost memory and change no interval."""


class Estimate(NamedTuple):
    """A value with its 90% interval; None where there are too few to say."""

    value: float
    std_error: float | None
    low: float | None
    high: float | None
    draws: Draws | None = None

    @classmethod
    def of(cls, value: float, drawn: Float[Tensor, " n_resamples"]) -> "Estimate":
        """Return a value with its standard error and 90% percentile interval, by the draws in which it is finite."""
        drawn = drawn[drawn.isfinite()].double()
        if len(drawn) < 2:
            return cls(value, None, None, None)
        low, high = torch.quantile(drawn, drawn.new_tensor(_ENDS)).tolist()
        return cls(value, float(drawn.std()), low, high)

    def score(self, metric: str, variant: str = "", *, n: int, **details: object) -> Score:
        """Return it as a score of n tokens."""
        return Score(metric, self.value, variant, self.std_error, self.low, self.high, n, details, self.draws)


Statistic = Callable[[Tensor], Tensor]
"""Maps sums (..., n_sums) to values (...): a ratio of two of them, as a rule."""


class Resampled(NamedTuple):
    """Sums over all contexts, and over each draw of them."""

    total: Float[Tensor, " n_sums"]
    drawn: Float[Tensor, "n_resamples n_sums"]
    """Empty where one context alone was drawn from."""
    drawn_id: int
    """Names the draws."""

    def estimate(self, statistic: Statistic) -> Estimate:
        """Return a statistic of the sums, its standard error and its 90% percentile interval."""
        drawn = statistic(self.drawn)
        return Estimate.of(float(statistic(self.total)), drawn)._replace(draws=Draws(drawn, self.drawn_id))


class ContextBootstrap:
    """Draws of contexts, the same for everything that is measured with one of them: differences are paired."""

    def __init__(self, n_contexts: int, generator: torch.Generator, *, resamples: int = RESAMPLES) -> None:
        """Draw n contexts of n, so many times; of very many contexts, runs of as many beside each other are drawn."""
        self._run = -(-n_contexts // _MOST_UNITS)
        n_units = -(-n_contexts // self._run)
        drawn = torch.randint(n_units, (resamples if n_units > 1 else 0, n_units), generator=generator)
        ones = torch.ones(1, dtype=torch.float64).expand(drawn.shape)
        self._counts = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, ones)
        self._id = hash(drawn.numpy().tobytes())

    @property
    def draws(self) -> Float[Tensor, "n_resamples n_units"]:
        """Return how often each unit is in each draw: for sums too many to be held of all draws at once."""
        return self._counts

    def __call__(self, sums: Float[Tensor, "n_contexts n_sums"]) -> Resampled:
        """Return the sums of each draw."""
        sums = sums.double().cpu()
        if self._run > 1:
            sums = torch.stack([run.sum(0) for run in torch.split(sums, self._run)])
        return Resampled(sums.sum(0), self._counts @ sums, self._id)


def ratio(sums: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch"]:
    """Return the first sum over the second: a mean, where the second counts."""
    return sums[..., 0] / sums[..., 1]
