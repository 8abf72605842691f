"""What probes of latents are held against: computed once for a model, a place and a task, kept in the store."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from orchestrator.config.evaluation.probes import ProbesOptions
from worker.evaluation.context import EvaluationContext
from worker.evaluation.probes.features import TaskSet, Tick
from worker.evaluation.probes.fitting import Found, Projection, columns, sparse_probes, train_losses
from worker.evaluation.probes.logistic import Probe, Scale, cross_entropy, fit_together

DIRECTIONS = 4096
"""Random directions that are drawn and measured at a time."""
RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Of the full linear probe; the best is found on a fifth of the texts it is fitted to."""


@dataclass
class Baselines:
    """Of one set of tasks."""

    tasks: TaskSet
    context: EvaluationContext
    options: ProbesOptions
    tick: Tick
    _fixed: list[Mapping[str, Found]] | None = field(default=None, repr=False)

    def of(self, n_latents: int) -> list[Mapping[str, Found]]:
        """Return the baselines of each task: `random` is the best of as many directions as an SAE has latents."""
        if self._fixed is None:
            self._fixed = self._computed()
        n = n_latents if self.options.random_directions is None else self.options.random_directions
        if not n:
            return self._fixed
        blocks = [self._losses_of_block(block) for block in range(-(-n // DIRECTIONS))]
        losses = torch.cat(blocks, dim=1)[:, :n]
        return [
            {**fixed, "random": self._direction(number, losses[number])} for number, fixed in enumerate(self._fixed)
        ]

    def _computed(self) -> list[Mapping[str, Found]]:
        names = {"constant": self._constant, "channels": self._channels, "linear": self._linear}
        parts = {name: self._stored(name, compute) for name, compute in names.items()}
        return [{name: found[number] for name, found in parts.items()} for number in range(len(self.tasks.names))]

    def _stored(self, name: str, compute: Callable[[int], Found]) -> list[Found]:
        """Return one baseline of each task, from the store."""

        def tensors() -> dict[str, Tensor]:
            found = []
            for number in range(len(self.tasks.names)):
                found.append(compute(number))
                self.tick()
            return {
                "logits": torch.stack([one.logits for one in found]),
                "train_losses": torch.tensor([one.train_loss for one in found], dtype=torch.float64),
                "columns": torch.tensor([one.columns or (-1,) for one in found]),
            }

        kept = self.context.store.get(self._key(f"probe baseline {name}"), tensors)
        rows = zip(kept["logits"], kept["train_losses"].tolist(), kept["columns"].tolist(), strict=True)
        return [Found(logits, loss, tuple(i for i in which if i >= 0)) for logits, loss, which in rows]

    def _constant(self, number: int) -> Found:
        """Return the probe that gives every example the share of the label among those that are fitted on."""
        share = self.tasks.train.labels[number].double().mean()
        loss = -(share * share.log() + (1 - share) * (1 - share).log())
        return Found(torch.logit(share).expand(self.tasks.test.n).clone(), float(loss))

    @cached_property
    def _whole(self) -> Projection:
        return Projection(self.tasks.train.vectors.shape[1], lambda x, which: x[:, which])

    @cached_property
    def _channel_losses(self) -> Tensor:
        return train_losses(self.tasks, self._whole, self.options.ridge, self.tick)

    def _channels(self, number: int) -> Found:
        losses = self._channel_losses[number]
        return sparse_probes(self.tasks, number, self._whole, losses, k=(1,), ridge=self.options.ridge)[1]

    def _linear(self, number: int) -> Found:
        tasks = self.tasks
        train, test = (columns(tasks, part, self._whole, slice(None)).double() for part in (tasks.train, tasks.test))
        labels = tasks.train.labels[number].to(train.device)
        scale = Scale.of(train)
        probe = fit_together(scale.apply(train), labels, ridge=self._ridge(train, labels))
        return Found(probe.logits(scale.apply(test)).cpu(), probe.loss)

    def _ridge(self, train: Tensor, labels: Tensor) -> float:
        """Return the ridge with which a probe of four fifths of the texts is best on the others."""
        texts, text_of = torch.unique(self.tasks.train.units, return_inverse=True)
        order = torch.randperm(len(texts), generator=self.context.generator("probes ridge"))
        held = (order[text_of] % 5 == 0).to(train.device)
        if held.all() or not held.any() or labels[~held].all() or not labels[~held].any():
            return RIDGES[0]
        scale = Scale.of(train[~held])
        fitted, other = scale.apply(train[~held]), scale.apply(train[held])
        probe: Probe | None = None
        losses: dict[float, float] = {}
        for ridge in RIDGES:
            probe = fit_together(fitted, labels[~held], ridge=ridge, start=probe)
            losses[ridge] = float(cross_entropy(probe.logits(other), labels[held].to(other)).mean())
            self.tick()
        return min(losses, key=lambda ridge: losses[ridge])

    def _losses_of_block(self, block: int) -> Tensor:
        projection = self._block(block)
        key = self._key("probe losses of random directions", block=block)
        compute = lambda: {"losses": train_losses(self.tasks, projection, self.options.ridge, self.tick)}  # noqa: E731
        return self.context.store.get(key, compute)["losses"]

    def _direction(self, number: int, losses: Tensor) -> Found:
        block, within = divmod(int(losses.argmin()), DIRECTIONS)
        alone = torch.full((DIRECTIONS,), torch.inf, dtype=torch.float64)
        alone[within] = 0.0
        found = sparse_probes(self.tasks, number, self._block(block), alone, k=(1,), ridge=self.options.ridge)[1]
        return found._replace(columns=(block * DIRECTIONS + within,))

    def _block(self, block: int) -> Projection:
        d_model = self.tasks.train.vectors.shape[1]
        generator = self.context.generator(f"probes {block}")

        @lru_cache(maxsize=1)
        def directions() -> Tensor:
            return torch.randn(d_model, DIRECTIONS, generator=generator).to(self.tasks.train.vectors.device)

        return Projection(DIRECTIONS, lambda x, which: x @ directions()[:, which])

    def _key(self, what: str, **more: int) -> dict[str, object]:
        return {"what": what, "features": self.tasks.key, "ridge": self.options.ridge, **more}
