"""Adam and what surrounds it: projection, clipping, unit decoder rows, average of the weights, learning rate."""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim.adam import adam

from orchestrator.config.job import OptimizerConfig
from worker.sae.model import SparseAutoencoder
from worker.sae.native.kernels import AdamStep, Rows, kernels_for

_PART_ELEMENTS = 2**19
"""Of each of the five tensors in one visit: 10 MB in all. On two cores with 32 MB of cache the step over 2 × 12.6 M
parameters took 26 ms in such parts, 37 ms one operation after another, and Adam alone 13 ms."""


_STEPS_PER_REMEMBERED, _LONGEST_MEMORY = 10, 1000


def ema_coefficient(ema: float | Literal["auto"], step: int) -> float:
    """Return the share of the average that a step keeps, the first step being 1.

    auto: 1 − 1 / min(1000, 1 + (step − 1) / 10), a memory of a tenth of the steps taken, at most that of 0.999. The
    first step keeps nothing, so there is no bias to correct.
    Measured on the shipped subject (n 512 and 2,048, k 8 and 32, batches of 512; the rate auto, half and twice that):
    of memories of a half to a twentieth of the steps an eighth to a twelfth gave the lowest fvu after 64, 128 and 256
    steps: at 256 and `lr: auto` 0.89 to 0.97 of the raw weights', where 0.999 from the start gave 1.14 to 1.24 of it.
    """
    if ema != "auto":
        return ema
    return 1 - 1 / min(_LONGEST_MEMORY, 1 + (step - 1) / _STEPS_PER_REMEMBERED)


class _Part(NamedTuple):
    """Rows that one visit to memory updates: views of some parameters and of all that Adam keeps of them."""

    places: list[tuple[str, slice]]
    weights: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    averages: list[Tensor]
    steps: list[Tensor]


class Optimizer:
    """Adam on a sphere: W_dec rows have unit norm after every step.

    One step: gradients → project ∂W_dec off each row → optional global-norm clip → Adam, bias-corrected → unit rows →
    average ← β · average + (1 − β) · weights. Rows pass through all of it while they are in the cache: the floor is to
    read W, g, m, v, average once and to write W, m, v, average once, 36 bytes per parameter.
    """

    def __init__(self, model: SparseAutoencoder, config: OptimizerConfig, *, lr: float) -> None:
        """Start with zero moments and a zero average."""
        self.model = model
        self.config = config
        self.lr = lr
        self.n_steps = 0
        self.exp_avg, self.exp_avg_sq, self.average = (
            {name: torch.zeros_like(value) for name, value in model.named_parameters()} for _ in range(3)
        )

    @torch.no_grad()
    def step(self, *, lr: float | None = None) -> Float[Tensor, ""]:
        """Take one step from the gradients that are there, clear them, and return their norm (projected, unclipped).

        `lr` is the rate of this step, the optimiser's own by default.
        """
        lr = self.lr if lr is None else lr
        norm = None if self.config.clip_norm is None else self._clip(self.config.clip_norm)
        named = self.model.named_parameters()
        stepped: dict[str, Tensor] = {name: value for name, value in named if value.grad is not None}
        kernels = kernels_for(*stepped.values(), *(_gradient(value) for value in stepped.values()))
        take = self._compiled if kernels else self._plain
        names, norms = take(stepped, lr=lr, is_projected=norm is not None)
        for value in stepped.values():
            value.grad = None
        self.n_steps += 1
        return self._norm(names, norms) if norm is None else norm

    def numbers(self, lr: float) -> AdamStep:
        """Return what the kernels need to know of the next step."""
        (beta1, beta2), t = self.config.betas, self.n_steps + 1
        bias, share = math.sqrt(1 - beta2**t), 1 - ema_coefficient(self.config.ema, t)
        return AdamStep(lr / (1 - beta1**t), bias, beta1, beta2, 1 - beta1, 1 - beta2, self.config.eps, share)

    @torch.no_grad()
    def averaged(self) -> dict[str, Tensor]:
        """Return the bias-corrected average of the weights, decoder rows at unit norm; before any step, the weights."""
        if self.n_steps == 0:
            return {name: value.detach().clone() for name, value in self.model.named_parameters()}
        missing = 0.0 if self.config.ema == "auto" else self.config.ema**self.n_steps
        weights = {name: value / (1 - missing) for name, value in self.average.items()}
        unit_rows(weights["W_dec"])
        return weights

    def tensors(self) -> dict[str, Tensor]:
        """Return Adam's moments and the running average, by name."""
        return {f"{kind}.{name}": value for kind in _STATE for name, value in getattr(self, kind).items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], *, n_steps: int) -> None:
        """Take back what `tensors` returned after `n_steps` steps."""
        self.n_steps = n_steps
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    def _compiled(self, stepped: dict[str, Tensor], *, lr: float, is_projected: bool) -> tuple[list[str], Tensor]:
        """Take the whole step; return the norm of each gradient, and whose it is."""
        kernels = kernels_for()
        assert kernels, "asked before"
        step, squares = self.numbers(lr), []
        for name, value in stepped.items():
            kept = self.exp_avg[name], self.exp_avg_sq[name], self.average[name]
            rows = Rows(value, _gradient(value), *kept)
            squares.append(kernels.adam(step, rows, is_sphere=name == "W_dec", is_projected=is_projected))
        return [*stepped], torch.tensor([math.sqrt(square) for square in squares])

    def _plain(self, stepped: dict[str, Tensor], *, lr: float, is_projected: bool) -> tuple[list[str], Tensor]:
        """Do the same in torch."""
        parts = [*self._parts(stepped)]
        norms = [self._visit(part, lr=lr, is_projected=is_projected) for part in parts]
        return [name for part in parts for name, _ in part.places], torch.cat(norms)

    def _parts(self, parameters: dict[str, Tensor]) -> Iterator[_Part]:
        """Yield all parameters: small ones at once, of large ones as many rows as a cache holds."""
        n_elements = sum(value.numel() for value in parameters.values())
        if n_elements <= _PART_ELEMENTS or self.model.W_enc.is_cuda:
            yield self._part([(name, slice(None)) for name in parameters])
            return
        for name, value in parameters.items():
            rows = max(1, _PART_ELEMENTS * len(value) // value.numel())
            for first in range(0, len(value), rows):
                yield self._part([(name, slice(first, first + rows))])

    def _part(self, places: list[tuple[str, slice]]) -> _Part:
        parameters = dict(self.model.named_parameters())
        every = (parameters, self.exp_avg, self.exp_avg_sq, self.average)
        weights, exp_avgs, exp_avg_sqs, averages = ([of[name][rows] for name, rows in places] for of in every)
        steps = [torch.tensor(float(self.n_steps), device=self.model.W_enc.device) for _ in places]
        return _Part(places, weights, exp_avgs, exp_avg_sqs, averages, steps)

    def _visit(self, part: _Part, *, lr: float, is_projected: bool) -> Float[Tensor, " n_places"]:
        """Take the whole step for some rows; return the norms of their gradients."""
        parameters = dict(self.model.named_parameters())
        gradients = [_gradient(parameters[name])[rows] for name, rows in part.places]
        decoder = [i for i, (name, _) in enumerate(part.places) if name == "W_dec"]
        for i in decoder if not is_projected else ():
            project(gradients[i], part.weights[i])
        norms = torch.stack(list(torch._foreach_norm(gradients)))
        beta1, beta2 = self.config.betas
        adam(
            part.weights, gradients, part.exp_avgs, part.exp_avg_sqs, [], part.steps,
            fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=lr, weight_decay=0.0, eps=self.config.eps,
            maximize=False,
        )  # fmt: skip
        for i in decoder:
            unit_rows(part.weights[i])
        torch._foreach_lerp_(part.averages, part.weights, 1 - ema_coefficient(self.config.ema, self.n_steps + 1))
        return norms

    def _norm(self, names: list[str], norms: Float[Tensor, " n_parts"]) -> Float[Tensor, ""]:
        """Return the norm of the whole gradient from those of its parts; `names` says whose part each is."""
        found: Tensor = torch.linalg.vector_norm(norms)
        return found

    def _clip(self, limit: float) -> Float[Tensor, ""]:
        """Project and scale the gradients before any row is changed; return their norm."""
        project(_gradient(self.model.W_dec), self.model.W_dec)
        found = {name: _gradient(p) for name, p in self.model.named_parameters() if p.grad is not None}
        gradients = [*found.values()]
        norm = self._norm([*found], torch.stack(list(torch._foreach_norm(gradients))))
        # The tiny term keeps a zero gradient from dividing by zero.
        scale = (limit / (norm + 1e-30)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
        return norm


_STATE = ("exp_avg", "exp_avg_sq", "average")


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "every parameter that is stepped has a gradient"
    return parameter.grad


@torch.no_grad()
def project(gradient: Float[Tensor, "n_rows d_model"], W_dec: Float[Tensor, "n_rows d_model"]) -> None:
    """Take the component parallel to each decoder row out of ∂W_dec: it would only change the row's length."""
    parallel = torch.linalg.vecdot(gradient, W_dec).unsqueeze(1)
    gradient.addcmul_(parallel, W_dec, value=-1)


@torch.no_grad()
def unit_rows(W_dec: Float[Tensor, "n_latents d_model"]) -> None:
    """Scale every row to unit norm, in place."""
    W_dec.div_(torch.linalg.vector_norm(W_dec, dim=1, keepdim=True))
