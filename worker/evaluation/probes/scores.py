"""Scores of probes: cross-entropy and balanced accuracy of each task, their means, and how sure they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.evaluation.bootstrap import Estimate
from worker.evaluation.metric import Score
from worker.evaluation.probes.features import TaskSet
from worker.evaluation.probes.fitting import Found
from worker.evaluation.probes.logistic import cross_entropy

LOSS, ACCURACY, GAIN = "probe_loss", "probe_balanced_accuracy", "probe_gain"
BASELINES = ("constant", "channels", "random", "linear")
Draws = NDArray[np.float64]


class Drawn(NamedTuple):
    """A value, and what it would be of other texts."""

    value: float
    draws: Draws
    """(n_draws)."""

    def estimate(self) -> Estimate:
        """Return the value with its interval."""
        return Estimate.of(self.value, torch.from_numpy(self.draws))


@dataclass(frozen=True)
class TaskScores:
    """What the probes of one task say on the examples for testing."""

    name: str
    n_train: int
    labels: NDArray[np.bool_]
    weights: Draws
    """(n_draws, n_examples): how often each example is drawn; those of one text together."""
    found: Mapping[str, Found]
    """By variant: empty for the best latent alone, `k=2`, baselines."""

    @cached_property
    def losses(self) -> dict[str, Drawn]:
        """Cross-entropy in nats, by variant."""
        y = torch.from_numpy(self.labels).double()
        return {name: self._mean(cross_entropy(one.logits, y).numpy()) for name, one in self.found.items()}

    @cached_property
    def accuracies(self) -> dict[str, Drawn]:
        """Mean of the shares of either label that is given rightly, by variant; a logit of 0 is given neither."""
        return {name: self._balanced(one.logits) for name, one in self.found.items()}

    def gain(self, baseline: str) -> Drawn:
        """Return how much lower the loss of the best latent is than a baseline's, on the same draws."""
        ours, theirs = self.losses[""], self.losses[baseline]
        return Drawn(theirs.value - ours.value, theirs.draws - ours.draws)

    def _mean(self, values: NDArray[np.float64]) -> Drawn:
        return Drawn(float(values.mean()), self.weights @ values / self.weights.sum(1))

    def _balanced(self, logits: Tensor) -> Drawn:
        guess = np.sign(logits.numpy())
        right = np.where(guess == 0, 0.5, guess == np.where(self.labels, 1, -1))
        ones, others = (self._of(right, self.labels == label) for label in (True, False))
        return Drawn((ones.value + others.value) / 2, (ones.draws + others.draws) / 2)

    def _of(self, right: NDArray[np.float64], is_of: NDArray[np.bool_]) -> Drawn:
        weights = self.weights[:, is_of]
        with np.errstate(invalid="ignore"):  # a draw without this label says nothing of it
            return Drawn(float(right[is_of].mean()), weights @ right[is_of] / weights.sum(1))


def draw_weights(tasks: TaskSet, n_draws: int, generator: np.random.Generator) -> Draws:
    """Return how often a bootstrap over texts draws each example for testing: (n_draws, n_examples)."""
    texts, text_of = np.unique(tasks.test.units.numpy(), return_inverse=True)
    counts = generator.multinomial(len(texts), np.full(len(texts), 1 / len(texts)), size=n_draws)
    return counts[:, text_of].astype(np.float64)


def scores_of(tasks: Sequence[TaskScores], left_out: Mapping[str, str], generator: np.random.Generator) -> list[Score]:
    """Return the scores of one SAE: means over tasks by variant, and those of the best latent by task."""
    n_draws = len(tasks[0].weights)
    picks = generator.integers(len(tasks), size=(n_draws, len(tasks)))
    rows = generator.integers(n_draws, size=(n_draws, len(tasks)))

    def mean(metric: str, variant: str, found: Sequence[Drawn], **details: Any) -> Score:
        draws = np.stack([one.draws for one in found])[picks, rows]
        value = float(np.mean([one.value for one in found]))
        return Drawn(value, draws.mean(1)).estimate().score(metric, variant, n=len(tasks), n_of="tasks", **details)

    told = {"left_out": dict(left_out)} if left_out else {}
    scores = [mean(LOSS, "", [task.losses[""] for task in tasks], **told)]
    scores.append(_optimistic(tasks))
    for variant in tasks[0].found:
        if variant:
            scores.append(mean(LOSS, variant, [task.losses[variant] for task in tasks]))
    for variant in tasks[0].found:
        scores.append(mean(ACCURACY, variant, [task.accuracies[variant] for task in tasks]))
    for baseline in BASELINES:
        if baseline in tasks[0].found:
            scores.append(mean(GAIN, baseline, [task.gain(baseline) for task in tasks]))
    for task in tasks:
        details = {"latent": task.found[""].columns[0], "n_of": "examples"}
        for metric, found in ((LOSS, task.losses[""]), (ACCURACY, task.accuracies[""])):
            scores.append(found.estimate().score(metric, f"task={task.name}", n=len(task.labels), **details))
    return scores


def table_of(tasks: Sequence[TaskScores], left_out: Mapping[str, str]) -> dict[str, Any]:
    """Return everything that was measured of each task, as JSON keeps it."""
    return {"tasks": {task.name: _row(task) for task in tasks}, "left_out": dict(left_out)}


def _row(task: TaskScores) -> dict[str, Any]:
    probes = {
        name or "latent": {
            "loss": task.losses[name].value,
            "loss_std_error": task.losses[name].estimate().std_error,
            "balanced_accuracy": task.accuracies[name].value,
            "train_loss": one.train_loss,
            "columns": list(one.columns),
        }
        for name, one in task.found.items()
    }
    return {
        "n_train": task.n_train, "n_test": len(task.labels), "share_of_label": float(task.labels.mean()),
        "probes": probes,
    }  # fmt: skip


def _optimistic(tasks: Sequence[TaskScores]) -> Score:
    """Return the paper's definition: the least loss over all latents on the examples that they were fitted to."""
    value = float(np.mean([task.found[""].train_loss for task in tasks]))
    details = {"n_of": "tasks", "bias": "chosen and measured on the same examples: too low, about as ln n_latents"}
    return Score(LOSS, value, "same split", n=len(tasks), details=details)
