"""Everything that the training of a lens changes, so that it can be put away and taken up again bit for bit."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config.lens.facts import LensFacts
from orchestrator.config.lens.training import LensConfig
from orchestrator.curves.lens_curve import LensPoint, mean_kl
from worker.lens.tuned_lens import TunedLens
from worker.lens_training.divergence import Divergence
from worker.sae.optimizer import ema_coefficient

_COUNTERS = ("tokens_seen", "n_steps", "loss_sum", "norm_sum", "steps_since_point", "wall_seconds", "logit_lens_kls")


class LensState:
    """Translators in training: h' = h + A h + b from zero, Adam, the running mean of the weights, the curve.

    Nothing random is drawn. Loss: KL(final ‖ lens), mean over the layers but the last and over the measured positions.
    Source: Belrose et al. 2023, section 3.
    """

    def __init__(self, config: LensConfig, *, n_layers: int, d_model: int, device: torch.device | str = "cpu") -> None:
        """Start at zero: the logit lens."""
        n = n_layers - 1
        self.n_layers, self.d_model = n_layers, d_model
        self.weights = [torch.zeros(d_model, d_model, device=device, requires_grad=True) for _ in range(n)]
        self.biases = [torch.zeros(d_model, device=device, requires_grad=True) for _ in range(n)]
        self._parameters = [*self.weights, *self.biases]
        self._averages = [torch.zeros_like(one, requires_grad=False) for one in self._parameters]
        adam = config.optimizer
        self._adam = torch.optim.Adam(self._parameters, lr=adam.lr, betas=adam.betas, eps=adam.eps, foreach=False)
        for one in self._parameters:  # as Adam does at its first step; so a state has its tensors from the start
            zeros = {name: torch.zeros_like(one, requires_grad=False) for name in ("exp_avg", "exp_avg_sq")}
            self._adam.state[one] = {"step": torch.tensor(0.0), **zeros}
        self.tokens_seen, self.n_steps = 0, 0
        self.loss_sum, self.norm_sum, self.steps_since_point = 0.0, 0.0, 0
        self.wall_seconds = 0.0
        self.logit_lens_kls: list[float] = []
        """By layer, on the held-out text; empty before it is measured."""
        self.curve: list[LensPoint] = []

    def step(
        self, divergence: Divergence, ids: Tensor, is_measured: Tensor, *, alive: Callable[[], None] = lambda: None
    ) -> None:
        """Take one step on a batch; logits of one layer and one part at a time.

        Shapes:
            ids, is_measured (n_contexts, context)
        """
        weight = 1 / (max(1, int(is_measured.sum())) * (self.n_layers - 1))
        for part in divergence.parts(ids, is_measured):
            for layer, x in enumerate(part.residuals):
                loss = weight * divergence.kl(part, _translated(x, self.weights[layer], self.biases[layer]))
                loss.backward()  # type: ignore[no-untyped-call]
                self.loss_sum += loss.item()
                alive()
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        self.norm_sum += math.sqrt(sum(float(one.square().sum(dtype=torch.float64)) for one in gradients))
        self._adam.step()
        self._adam.zero_grad()
        self.n_steps += 1
        self.steps_since_point += 1
        with torch.no_grad():
            for average, one in zip(self._averages, self._parameters, strict=True):
                average.lerp_(one, 1 - ema_coefficient("auto", self.n_steps))
        self.tokens_seen += ids.numel()

    def translate(self, layer: int, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Map the output of a block but the last by the mean of the weights."""
        return _translated(x, self._averages[layer], self._averages[self.n_layers - 1 + layer])

    def point(self, kls: list[float]) -> LensPoint:
        """Append the point of what the lens scores, and return it; sums start anew."""
        n_steps = max(1, self.steps_since_point)
        loss, grad_norm = self.loss_sum / n_steps, self.norm_sum / n_steps
        kl = mean_kl(kls) if math.isfinite(loss) else math.nan
        finite = [one if math.isfinite(one) else None for one in kls]
        found = LensPoint(self.tokens_seen, kl, finite, loss, grad_norm, self.wall_seconds)
        self.loss_sum, self.norm_sum, self.steps_since_point = 0.0, 0.0, 0
        self.curve.append(found)
        return found

    def lens(self, facts: LensFacts) -> TunedLens:
        """Return the lens: the mean of the weights, and the identity for the last block."""
        n = self.n_layers - 1
        weights, biases = torch.stack(self._averages[:n]), torch.stack(self._averages[n:])
        return TunedLens(
            weights=torch.cat([weights, torch.zeros_like(weights[:1])]).cpu(),
            biases=torch.cat([biases, torch.zeros_like(biases[:1])]).cpu(),
            facts=facts,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        kept: dict[str, list[Tensor]] = {"weights": self._parameters, "averages": self._averages}
        kept |= {name: [self._adam.state[one][name] for one in self._parameters] for name in ("exp_avg", "exp_avg_sq")}
        return {f"{name}.{i}": one for name, several in kept.items() for i, one in enumerate(several)}

    def values(self) -> dict[str, Any]:
        """Return all else as JSON holds it."""
        return {name: getattr(self, name) for name in _COUNTERS} | {"curve": [asdict(point) for point in self.curve]}

    @classmethod
    def restored(
        cls, config: LensConfig, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *,
        device: torch.device | str = "cpu",
    ) -> "LensState":  # fmt: skip
        """Return the state of `tensors` and `values`.

        Raises:
            KeyError, RuntimeError, TypeError: they are not of one.
        """
        n = sum(name.startswith("weights.") for name in tensors) // 2
        state = cls(config, n_layers=n + 1, d_model=len(tensors["weights.0"]), device=device)
        with torch.no_grad():
            for name, own in state.tensors().items():
                own.copy_(tensors[name])
        for name in _COUNTERS:
            setattr(state, name, values[name])
        for one in state._parameters:
            state._adam.state[one]["step"].fill_(state.n_steps)
        state.curve = [LensPoint(**point) for point in values["curve"]]
        return state


def _translated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x + torch.nn.functional.linear(x, weight, bias)
