"""Everything that one training changes, so that it can be put away and taken up again bit for bit."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config import JobConfig
from orchestrator.curve import Point
from orchestrator.errors import TrainingError
from worker.sae.init import initialise
from worker.sae.model import SparseAutoencoder
from worker.sae.optimizer import Optimizer, base_lr


class Trainee:
    """A sparse autoencoder in training: model, optimiser, counters, curve. Nothing random is drawn after the start."""

    def __init__(self, config: JobConfig, d_model: int, *, device: torch.device | str = "cpu") -> None:
        """Allocate; `fresh` and `restored` fill it."""
        self.model = SparseAutoencoder(config.sae, d_model, dtype=config.training.dtype).to(device)
        self.optimizer = Optimizer(self.model, config.optimizer, lr=base_lr(config, d_model))
        self.mu: Float[Tensor, " d_model"] = torch.zeros(d_model, device=device)
        """Mean of the sample."""
        self.variance = math.nan
        """v: mean ‖x − μ‖² of the sample; the loss is in units of it."""
        self.tokens_since_fired = torch.zeros(self.model.n_latents, dtype=torch.int64, device=device)
        self.sums: Float[Tensor, " 3"] = torch.zeros(3, dtype=torch.float64, device=device)
        """Loss, AuxK loss and gradient norm, summed over the steps since the last point."""
        self.steps_since_point = 0
        self.tokens_seen = 0
        self.aux_tokens = 0
        """Tokens trained on while AuxK was active."""
        self.wall_seconds = 0.0
        self.untrained_fvu: float | None = None
        """fvu of the model before its first step; measured by `train`."""
        self.curve: list[Point] = []

    @classmethod
    def fresh(cls, config: JobConfig, sample: Float[Tensor, "n_tokens d_model"]) -> "Trainee":
        """Start from a sample of NORMALISED activations, on its device.

        Raises:
            TrainingError: the sample is empty, not finite, or does not vary.
        """
        trainee = cls(config, sample.shape[1], device=sample.device)
        trainee.mu = sample.mean(0)
        trainee.variance = float((sample - trainee.mu).square().sum(1, dtype=torch.float64).mean())
        if not (math.isfinite(trainee.variance) and trainee.variance > 0):
            raise TrainingError(
                f"the {len(sample)} sampled activations have variance {trainee.variance}: there is nothing to learn",
                hint="check the hook point, and the subject's dtype (float16 can overflow)",
            )
        initialise(trainee.model, sample, seed=config.training.seed)
        return trainee

    def averaged(self) -> SparseAutoencoder:
        """Return a copy of the model with the averaged weights, for evaluation."""
        model = copy.deepcopy(self.model).eval().requires_grad_(False)
        model.load_state_dict(self.optimizer.averaged(), strict=False)
        return model

    def facts(self) -> dict[str, Any]:
        """Return what the config left open and this training settled."""
        model = self.model
        return {
            "d_model": model.d_model,
            "n_latents": model.n_latents,
            "k": model.k,
            "k_aux": model.k_aux,
            "lr": self.optimizer.lr,
            "variance": self.variance,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state, by name."""
        parts = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        own = {"mu": self.mu, "sums": self.sums, "tokens_since_fired": self.tokens_since_fired}
        return {**parts, **own, **self.optimizer.tensors()}

    def values(self) -> dict[str, Any]:
        """Return the rest of the state, as JSON can hold it; floats keep every bit."""
        return {
            **{name: getattr(self, name) for name in _VALUES},
            "lr": self.optimizer.lr,
            "n_steps": self.optimizer.n_steps,
            "curve": [list(point) for point in self.curve],
        }

    @classmethod
    def restored(
        cls, config: JobConfig, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, device: torch.device | str
    ) -> "Trainee":
        """Rebuild what `tensors` and `values` describe.

        Raises:
            KeyError: a part of the state is missing.
        """
        trainee = cls(config, len(tensors["mu"]), device=device)
        weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        trainee.model.load_state_dict(weights)
        for name in ("mu", "sums", "tokens_since_fired"):
            # copy_ into memory torch allocated: a tensor mapped from a file may be aligned otherwise, and a matrix
            # product may round otherwise.
            getattr(trainee, name).copy_(tensors[name])
        for name in _VALUES:
            setattr(trainee, name, values[name])
        trainee.optimizer.lr = values["lr"]
        trainee.optimizer.restore(dict(tensors), n_steps=values["n_steps"])
        trainee.curve = [Point(*point) for point in values["curve"]]
        return trainee


_VALUES = ("variance", "steps_since_point", "tokens_seen", "aux_tokens", "wall_seconds", "untrained_fvu")
