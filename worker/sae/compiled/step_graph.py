"""The whole training step in fixed shapes, fit for one compiled graph: nothing in it waits for the device.

Its parts are `operations`: plain torch, or Triton kernels where those were measured to be faster.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from orchestrator.config.job import OptimizerConfig
from worker.sae import manual_gradients
from worker.sae.compiled.autotune import operations
from worker.sae.compiled.autotune_cases import Shape
from worker.sae.compiled.operations import Operations
from worker.sae.tiled_encode import Selected
from worker.sae.topk import best_of
from worker.sae.train_state import TrainState


class StepTensors(NamedTuple):
    """Everything that a step changes, in place."""

    weights: manual_gradients.Weights
    exp_avg: manual_gradients.Weights
    exp_avg_sq: manual_gradients.Weights
    average: manual_gradients.Weights
    tokens_since_fired: Int[Tensor, " n_latents"]

    @classmethod
    def of(cls, state: TrainState) -> "StepTensors":
        """Return views of a state's tensors."""
        optimizer = state.optimizer
        kept = (optimizer.exp_avg, optimizer.exp_avg_sq, optimizer.average)
        exp_avg, exp_avg_sq, average = (
            manual_gradients.Weights(*(of[name] for name in manual_gradients.Weights._fields)) for of in kept
        )
        weights = manual_gradients.Weights(*(value.detach() for value in manual_gradients.Weights.of(state.model)))
        return cls(weights, exp_avg, exp_avg_sq, average, state.tokens_since_fired)


class Graph(NamedTuple):
    """What a graph is made for. What differs between jobs of one shape is data: `scalars`."""

    parts: tuple[tuple[int, float], ...]
    k_aux: int
    aux_coef: float
    optimizer: OptimizerConfig
    product_dtype: torch.dtype | None
    with_aux: bool


class Kernels(NamedTuple):
    """What computes the parts of a step, as measured for its k and for k_aux."""

    step: Operations
    aux: Operations

    @classmethod
    def of(cls, state: TrainState, n_tokens: int, *, folder: Path | None) -> "Kernels":
        """Return the fastest for a state's device and sizes; what is measured is remembered in `folder`."""
        model = state.model
        dtype, device = model.product_dtype or torch.float32, model.W_enc.device.type
        shape = Shape(device, n_tokens, model.d_model, model.n_latents, model.k_widest, dtype)
        aux = operations(shape._replace(k=model.k_aux), folder=folder, parts=("decode", "sample", "gradients"))
        return cls(operations(shape, folder=folder), aux)


class StepScalars(NamedTuple):
    """Numbers that differ from step to step or from job to job."""

    step_size: float
    """lr / (1 − β1^t)."""
    correction: float
    """√(1 − β2^t)."""
    variance: float
    dead_after_tokens: int


@torch.no_grad()
def whole_step(
    tensors: StepTensors,
    x: Float[Tensor, "n_tokens d_model"],
    scalars: Float[Tensor, " 4"],
    graph: Graph,
    kernels: Kernels,
) -> Float[Tensor, " 3"]:
    """Take one step in place; return loss, AuxK loss and gradient norm. `scalars` are StepScalars in float64."""
    weights, step = tensors.weights, kernels.step
    selected = _select(weights, x, graph, step)
    narrow = selected.narrowed(graph.parts[0][0])
    tensors.tokens_since_fired.copy_(step.count_tokens_since_fired(*narrow, tensors.tokens_since_fired))
    numbers = scalars.to(x.dtype)
    total, error, by_reconstruction = _losses(weights, x, selected, graph, variance=numbers[2], step=step)
    gradients = _gradients(weights, selected, by_reconstruction, graph, step)
    aux = torch.zeros_like(total)
    if graph.with_aux:
        dead = tensors.tokens_since_fired > scalars[3]
        aux = _add_aux(gradients, weights, selected, error, dead=dead, graph=graph, kernels=kernels.aux)
    norm = _descend(tensors, gradients, numbers, graph.optimizer, step)
    return torch.stack([total + graph.aux_coef * aux, aux, norm])


def _select(weights: manual_gradients.Weights, x: Tensor, graph: Graph, step: Operations) -> Selected:
    centred, k, dtype = x - weights.b_pre, graph.parts[-1][0], graph.product_dtype
    encoder = (weights.W_enc, weights.b_enc)
    if dtype is not None:
        rounded = [part.to(dtype) for part in (centred, *encoder)]
        pre_acts, maxima = step.encode(*rounded)
        candidates = step.select(pre_acts, maxima, k=min(2 * k, len(weights.W_enc)))[1]
        values, indices = best_of(candidates, centred, encoder, k, product=step.sampled_product)
    elif graph.with_aux:
        pre_acts, maxima = step.encode(centred, *encoder)
        values, indices = step.select(pre_acts, maxima, k=k)
    else:  # only here may the pre-activations come and go in tiles
        pre_acts, (values, indices) = None, step.encode_top_k(centred, *encoder, k=k)
    return Selected(centred, values.relu(), indices, pre_acts)


def _losses(
    weights: manual_gradients.Weights,
    x: Tensor,
    selected: Selected,
    graph: Graph,
    *,
    variance: Tensor,
    step: Operations,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the loss, the error of the first reconstruction, and the gradient of the loss in each."""
    total, errors, gradients = x.new_zeros(()), [], []
    for k, weight in graph.parts:
        error, squares = step.reconstruction_error(x, *selected.narrowed(k), weights.W_dec, weights.b_pre)
        total = total + weight * squares.sum() / (len(x) * variance)
        errors.append(error)
        gradients.append(error * (-2 * weight / (len(x) * variance)))
    return total, errors[0], gradients


def _gradients(
    weights: manual_gradients.Weights,
    selected: Selected,
    by_reconstruction: list[Tensor],
    graph: Graph,
    step: Operations,
) -> manual_gradients.Weights:
    centred, (acts, indices) = selected.centred, selected.narrowed(graph.parts[-1][0])
    if len(graph.parts) == 1:
        W_dec, W_enc, b_enc = step.latent_gradients(acts, indices, by_reconstruction[0], centred, weights.W_dec)
    else:
        narrow_acts, narrow_indices = selected.narrowed(graph.parts[0][0])
        by_acts = step.sampled_product(by_reconstruction[1], indices, weights.W_dec)
        by_narrow = step.sampled_product(by_reconstruction[0], narrow_indices, weights.W_dec)
        by_acts = (by_acts + pad(by_narrow, (0, acts.shape[1] - by_narrow.shape[1]))).where(acts > 0, 0.0)
        n = len(weights.W_dec)
        W_dec, W_enc, b_enc = step.sums_by_latent(acts, by_acts, indices, by_reconstruction[1], centred, n_latents=n)
        more = (narrow_acts, by_narrow, narrow_indices, by_reconstruction[0], centred)
        W_dec = W_dec + step.sums_by_latent(*more, n_latents=n)[0]
    b_pre = torch.stack([gradient.sum(0) for gradient in by_reconstruction]).sum(0) - b_enc @ weights.W_enc
    return manual_gradients.Weights(W_enc, b_enc, W_dec, b_pre)


def _add_aux(
    gradients: manual_gradients.Weights,
    weights: manual_gradients.Weights,
    selected: Selected,
    error: Tensor,
    *,
    dead: Tensor,
    graph: Graph,
    kernels: Operations,
) -> Float[Tensor, ""]:
    """Add AuxK's gradients and return its loss, without asking how many are dead: of the others every value is −∞."""
    assert selected.pre_acts is not None, "AuxK looks for the dead among the pre-activations"
    pre_acts = selected.pre_acts.masked_fill(~dead, -torch.inf)
    values, indices = torch.topk(pre_acts, min(graph.k_aux, len(dead)), dim=1)
    if graph.product_dtype is not None:  # rounded: good for candidates only
        rounded, candidates = torch.topk(pre_acts, min(2 * graph.k_aux, len(dead)), dim=1)
        exact = kernels.sampled_product(selected.centred, candidates, weights.W_enc) + weights.b_enc[candidates]
        values, at = exact.where(rounded > -torch.inf, -torch.inf).topk(values.shape[1], dim=1)
        indices = candidates.gather(1, at)
    acts = values.relu()
    left = error - kernels.decode(acts, indices, weights.W_dec)
    missing, spread = left.square().sum(), (error - error.mean(0)).square().sum()
    usable = (spread > 0) & missing.isfinite() & dead.any()
    scale = torch.where(usable, -2 * graph.aux_coef / spread.where(usable, 1.0), 0.0)
    into = (gradients.W_dec, gradients.W_enc, gradients.b_enc)
    kernels.add_latent_gradients(acts, indices, left.nan_to_num() * scale, selected.centred, weights.W_dec, *into)
    return torch.where(usable, missing / spread.where(usable, 1.0), 0.0)


def _descend(
    tensors: StepTensors,
    gradients: manual_gradients.Weights,
    numbers: Tensor,
    config: OptimizerConfig,
    step: Operations,
) -> Float[Tensor, ""]:
    """Do what `Optimizer.step` does; return the gradient's norm."""
    spheres = [name == "W_dec" for name in manual_gradients.Weights._fields]
    scale = torch.ones_like(numbers[0])
    if config.clip_norm is not None:
        parts = zip(tensors.weights, gradients, spheres, strict=True)
        norm = torch.stack([step.gradient_squares(w, g, sphere=sphere) for w, g, sphere in parts]).sum().sqrt()
        scale = (config.clip_norm / (norm + 1e-30)).clamp(max=1.0)
    scalars = torch.stack([numbers[0], numbers[1], scale])
    how = {"betas": [*config.betas], "eps": config.eps, "ema": config.ema}
    squares = [
        step.adam(*parts, scalars, **how, sphere=sphere)
        for *parts, sphere in zip(
            tensors.weights, gradients, tensors.exp_avg, tensors.exp_avg_sq, tensors.average, spheres, strict=True
        )
    ]
    return torch.stack(squares).sum().sqrt()
