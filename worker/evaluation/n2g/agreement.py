"""How well predicted activations agree with the true ones: precision, recall, F1 of each latent, and their means."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from worker.evaluation.bootstrap import ContextBootstrap, ratio
from worker.evaluation.metric import Score
from worker.evaluation.n2g.latent_acts import Firings
from worker.evaluation.n2g.trie import Predicted


class Counts(NamedTuple):
    """Held-out tokens of one latent, of one definition of being active."""

    active: int
    predicted: int
    both: int

    @property
    def recall(self) -> float | None:
        """Return the share of active tokens that are predicted; None: there are none."""
        return self.both / self.active if self.active else None

    @property
    def precision(self) -> float | None:
        """Return the share of predicted tokens that are active; None: there are none."""
        return self.both / self.predicted if self.predicted else None

    @property
    def f1(self) -> float | None:
        """Return the harmonic mean of both; None where the latent is never active."""
        return 2 * self.both / (self.active + self.predicted) if self.active else None


class Agreement(NamedTuple):
    """What is counted of one latent."""

    above_zero: Counts
    """Active and predicted: above 0."""
    above_half: Counts
    """Active and predicted: at least half of the latent's largest held-out activation."""


def agreement(true: Firings, predicted: Predicted, is_measured: NDArray[np.bool_]) -> Agreement:
    """Count of one latent, at the tokens that are measured."""
    counts = is_measured[predicted.positions]
    positions, values = predicted.positions[counts], predicted.values[counts]
    half = float(true.values.max(initial=0)) / 2
    is_high, is_predicted_high = true.values >= half, values >= half
    return Agreement(
        _counted(true.positions, positions),
        _counted(true.positions[is_high], positions[is_predicted_high] if half else positions[:0]),
    )


def _counted(true: NDArray[np.int32], predicted: NDArray[np.int64]) -> Counts:
    return Counts(len(true), len(predicted), len(np.intersect1d(true, predicted, assume_unique=True)))


_RATES: dict[str, Callable[[Counts], float | None]] = {
    "precision": lambda counts: counts.precision,
    "recall": lambda counts: counts.recall,
    "f1": lambda counts: counts.f1,
}


def scores(found: Sequence[Agreement], chance: torch.Generator) -> list[Score]:
    """Return the means over latents, with 90% intervals by bootstrap over latents.

    The plain variant and `half_max` are of the latents that are active on the held-out text; precision of those among
    them of which anything is predicted. `all` counts every latent, as 0 where its value is not defined.
    """
    active = [one for one in found if one.above_zero.active]
    means = []
    for name, rate in _RATES.items():
        plain = [rate(one.above_zero) for one in active]
        half = [rate(one.above_half) for one in active]
        everything = [rate(one.above_zero) for one in found]
        variants = {
            "": [value for value in plain if value is not None],
            "half_max": [value for value in half if value is not None],
            "all": [
                0.0 if value is None or not one.above_zero.active else value
                for value, one in zip(everything, found, strict=True)
            ],
        }
        means += [mean_score(f"n2g_{name}", values, chance, v) for v, values in variants.items() if values]
    silent = 1 - len(active) / len(found)
    return [*means, Score("n2g_silent_share", silent, n=len(found), details={"of": "latents"})]


def mean_score(metric: str, values: Sequence[float], chance: torch.Generator, variant: str = "") -> Score:
    """Return the mean of a value over latents, with its standard error and 90% interval by bootstrap over them."""
    sums = torch.tensor([[value, 1.0] for value in values], dtype=torch.float64)
    return (
        ContextBootstrap(len(values), chance)(sums).estimate(ratio).score(metric, variant, n=len(values), of="latents")
    )
