"""Probes of the columns of a projection, such as the latents of an SAE: the best of all, and sparse ones of several."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from worker.evaluation.probes.features import Part, TaskSet, Tick
from worker.evaluation.probes.logistic import Scale, fit_each, fit_together

CANDIDATES = 256
"""The latents that are best alone, from which sparse probes choose further ones."""
_CHUNK_VALUES = 2**23
_CHUNK = (32, 1024)
"""Latents computed at a time, fewest and most: so many that there are about `_CHUNK_VALUES` values."""


class Projection(NamedTuple):
    """What maps activations to columns that are probed."""

    n: int
    """Number of columns."""
    of: Callable[[Tensor, slice | Tensor], Tensor]
    """(n_vectors, d_model), which columns -> (n_vectors, n)."""


class Found(NamedTuple):
    """What a probe says of the examples for testing."""

    logits: Float[Tensor, " n_test"]
    """float64, on the CPU."""
    train_loss: float
    """Mean cross-entropy on the examples that it was fitted to."""
    columns: tuple[int, ...] = ()
    """Which it reads."""


def train_losses(
    tasks: TaskSet, projection: Projection, ridge: float, tick: Tick
) -> Float[Tensor, "n_tasks n_columns"]:
    """Return the loss of the best probe of each column alone, on the examples that are fitted on; float64, on the CPU.

    A column whose loss is not finite gets infinity. `tick` is called after every task of every chunk.
    """
    losses = torch.empty(len(tasks.names), projection.n, dtype=torch.float64)
    size = _chunk(tasks)
    for start in range(0, projection.n, size):
        chunk = slice(start, min(start + size, projection.n))
        z = columns(tasks, tasks.train, projection, chunk)
        z = Scale.of(z).apply(z).T.contiguous()
        for number, labels in enumerate(tasks.train.labels):
            found = fit_each(z, labels.to(z.device), ridge=ridge).losses
            losses[number, chunk] = found.nan_to_num(nan=torch.inf).cpu()
            tick()
    return losses


def n_ticks(tasks: TaskSet, n_columns: int) -> int:
    """Return how often `train_losses` calls `tick`."""
    return len(tasks.names) * -(-n_columns // _chunk(tasks))


def _chunk(tasks: TaskSet) -> int:
    return min(max(_CHUNK_VALUES // max(1, len(tasks.train.vectors)), _CHUNK[0]), _CHUNK[1])


def columns(tasks: TaskSet, part: Part, projection: Projection, which: slice | Tensor) -> Float[Tensor, "n_examples n"]:
    """Return some columns of the examples, float32."""
    return tasks.pooled(projection.of(part.vectors, which).float(), part)


def most_columns(n_columns: int) -> int:
    """Return how many columns a sparse probe can have at most."""
    return min(n_columns, CANDIDATES)


def sparse_probes(
    tasks: TaskSet,
    number: int,
    projection: Projection,
    losses: Float[Tensor, " n_columns"],
    *,
    k: Sequence[int],
    ridge: float,
) -> Mapping[int, Found]:
    """Return the probes of 1, …, k columns of one task of a set, which are chosen on the examples that are fitted on.

    The first is the best alone. Each further one is that of the `CANDIDATES` best whose standardised values correlate
    most with what the probe so far leaves, E[z (y − σ(t))]: orthogonal matching pursuit for logistic regression.

    Source: Lozano, Świrszcz & Abe 2011, Group orthogonal matching pursuit for logistic regression; sparse probes as in
        Gurnee et al. 2023, Finding neurons in a haystack.
    """
    most = max(k)
    candidates = torch.topk(losses, most_columns(projection.n) if most > 1 else 1, largest=False).indices
    on = tasks.train.vectors.device
    train = columns(tasks, tasks.train, projection, candidates.to(on)).double()
    test = columns(tasks, tasks.test, projection, candidates.to(on)).double()
    scale = Scale.of(train)
    train, test = scale.apply(train), scale.apply(test)
    labels = tasks.train.labels[number].to(on)
    chosen = [0]
    found: dict[int, Found] = {}
    while True:
        probe = fit_together(train[:, chosen], labels, ridge=ridge)
        if len(chosen) in k:
            logits = probe.logits(test[:, chosen]).cpu()
            found[len(chosen)] = Found(logits, probe.loss, tuple(candidates[chosen].tolist()))
        if len(chosen) == min(most, len(candidates)):
            return found
        left = labels.double() - torch.sigmoid(probe.logits(train[:, chosen]))
        gain = (train.T @ left).abs()
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
