"""What scores of SAEs are held against: constant probes, channels, random directions, zero and mean ablation."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.formatting import Interval
from orchestrator.scaling.types import JobMeasurement


class Baseline(NamedTuple):
    """Something that needs no SAE, and is measured on the same text."""

    label: str
    key: str
    """Of what it comes to, among the scores of an SAE."""
    paired: str
    """Of the score that holds the SAE against it, on the same draws."""
    even: float = 0.0
    """That score where the SAE is just as good: better above 0, or below 1."""

    def is_better(self, row: JobMeasurement) -> bool | None:
        """Say whether an SAE is better than it; None where the interval does not say, or it was not measured."""
        score = row.scores.get(self.paired)
        if score is None or not (math.isfinite(score.low) and math.isfinite(score.high)):
            return None
        if score.low <= self.even <= score.high:
            return None
        return (score.low > self.even) == (self.even == 0.0)


CHANNELS, RANDOM = "residual channels", "random directions"
_FROM_START = "from start"


def _ablated(variant: str = "") -> tuple[Baseline, ...]:
    of = {CHANNELS: f"channels {variant}".strip(), RANDOM: f"random directions {variant}".strip()}
    return tuple(
        Baseline(label, f"ablation_sparsity {name}", f"ablation_ratio {name}", 1.0) for label, name in of.items()
    )


def _patched(loss: str, zero: str, mean: str) -> tuple[Baseline, ...]:
    return (
        Baseline("zero ablation", zero, f"recovered_{loss}"),
        Baseline("mean ablation", mean, f"recovered_{loss} mean"),
    )


BASELINES: dict[str, tuple[Baseline, ...]] = {
    "delta_ce": _patched("ce", "delta_ce zero ablation", "delta_ce mean ablation"),
    "kl": _patched("kl", "kl_zero", "kl_mean"),
    "probe_loss": (
        Baseline("constant", "probe_loss constant", "probe_gain constant"),
        Baseline(CHANNELS, "probe_loss channels", "probe_gain channels"),
        Baseline(RANDOM, "probe_loss random", "probe_gain random"),
        Baseline("probe of all channels", "probe_loss linear", "probe_gain linear"),
    ),
    "ablation_sparsity": _ablated(),
    f"ablation_sparsity {_FROM_START}": _ablated(_FROM_START),
}
"""By the score of the SAEs. Of probes channels and random directions are the best single one of them, as of latents."""
LABELS = tuple(dict.fromkeys(one.label for ones in BASELINES.values() for one in ones))


class Beside(NamedTuple):
    """SAEs beside one baseline of one score."""

    metric: str
    baseline: Baseline
    rows: tuple[JobMeasurement, ...]
    """Which have both."""

    def judged(self, is_better: bool | None) -> list[int]:
        """Return the jobs of those that are better; with False worse, with None not told apart."""
        return [row.job_id for row in self.rows if self.baseline.is_better(row) is is_better]

    def span(self, key: str) -> tuple[Interval, Interval]:
        """Return the lowest and the highest of a score."""
        found = [row.scores[key] for row in self.rows]
        return min(found, key=lambda one: one.value), max(found, key=lambda one: one.value)


def beside_baselines(rows: Sequence[JobMeasurement]) -> list[Beside]:
    """Return for each score and baseline the SAEs that have both."""
    found = [
        Beside(metric, one, tuple(row for row in rows if metric in row.scores and one.key in row.scores))
        for metric, ones in BASELINES.items()
        for one in ones
    ]
    return [one for one in found if one.rows]
