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
from worker.sae.dead_latents import count_by_layer, silent_tokens
from worker.sae.scaled_product import FLOAT8, ScaledRows, n_tiles
from worker.sae.tiled_encode import Selected
from worker.sae.topk import best_of
from worker.sae.train_state import TrainState


class StepTensors(NamedTuple):
    """Everything that a step changes, in place."""

    weights: manual_gradients.Weights
    exp_avg: manual_gradients.Weights
    exp_avg_sq: manual_gradients.Weights
    average: manual_gradients.Weights
    tokens_since_fired: Int[Tensor, "n_latents n_layers"]

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
    room: int
    """The most latents that may be dead; without AuxK 0."""


class Kernels(NamedTuple):
    """What computes the parts of a step, as measured for its k and for k_aux."""

    step: Operations
    aux: Operations
    """Encodes the dead latents alone, and decodes k_aux of them."""

    @classmethod
    def of(cls, state: TrainState, n_tokens: int, *, folder: Path | None) -> "Kernels":
        """Return the fastest for a state's device and sizes; what is measured is remembered in `folder`."""
        model = state.model
        dtype, device = model.product_dtype or torch.float32, model.W_enc.device.type
        if dtype is FLOAT8:  # its product is torch's own, and what selects in it sees bfloat16
            dtype = torch.bfloat16
        shape = Shape(device, n_tokens, model.d_model, model.n_latents, model.k_widest, dtype)
        of_dead = shape._replace(n_latents=few(model.n_latents))
        of_dead = of_dead._replace(k=min(candidates(model.k_aux, model.product_dtype), of_dead.n_latents))
        encoder = operations(of_dead, folder=folder, parts=("encode",))
        aux = operations(shape._replace(k=model.k_aux), folder=folder, parts=("decode", "sample", "gradients"))
        encode = {name: getattr(encoder, name) for name in ("encode", "block_maxima", "select", "encode_top_k")}
        return cls(operations(shape, folder=folder), aux._replace(**encode))


def few(n_latents: int) -> int:
    """Return how many latents may be dead in a graph that is made for a few: an eighth, in whole blocks."""
    return min(n_latents, -(-n_latents // 8 // 64) * 64)


def candidates(k: int, product_dtype: torch.dtype | None) -> int:
    """Return how many latents a product selects: twice as many where it is rounded, to be computed again exactly."""
    return k if product_dtype is None else 2 * k


class StepScalars(NamedTuple):
    """Numbers that differ from step to step or from job to job; behind them v of each layer."""

    step_size: float
    """lr / (1 − β1^t)."""
    correction: float
    """√(1 − β2^t)."""
    dead_after_tokens: int
    share: float
    """What the average takes of the new weights: 1 − ema."""


@torch.no_grad()
def whole_step(
    tensors: StepTensors,
    x: Float[Tensor, "n_tokens d_model"],
    scalars: Float[Tensor, " n_scalars"],
    graph: Graph,
    kernels: Kernels,
) -> Float[Tensor, " 4"]:
    """Take one step in place; return what `TrainState.sums` adds up. `scalars`: StepScalars and variances, float64."""
    weights, step = tensors.weights, kernels.step
    selected = _select(weights, x, graph, step)
    narrow = selected.narrowed(graph.parts[0][0])
    since, count = tensors.tokens_since_fired, step.count_tokens_since_fired
    since.copy_(count_by_layer(*narrow, since, count=count))
    numbers = scalars.to(x.dtype)
    variances = numbers[len(StepScalars._fields) :]
    total, error, by_reconstruction = _losses(weights, x, selected, graph, variances=variances, step=step)
    gradients = _gradients(weights, selected, by_reconstruction, graph, step)
    aux = total.new_zeros(2)
    if graph.room:
        dead = silent_tokens(since) > scalars[2]
        aux = _add_aux(gradients, weights, selected, error, dead=dead, graph=graph, kernels=kernels.aux)
    norm = _descend(tensors, gradients, numbers, graph.optimizer, step)
    return torch.stack([total + graph.aux_coef * aux[0], aux[0], norm, aux[1]])


def _select(weights: manual_gradients.Weights, x: Tensor, graph: Graph, step: Operations) -> Selected:
    centred = x - weights.b_pre
    values, indices = _largest(centred, (weights.W_enc, weights.b_enc), graph.parts[-1][0], graph.product_dtype, step)
    return Selected(centred, values.relu(), indices, None)


def _largest(
    centred: Tensor, encoder: tuple[Tensor, Tensor], k: int, dtype: torch.dtype | None, by: Operations
) -> tuple[Tensor, Tensor]:
    """Return the k largest pre-activations of each token, in full precision, and their places."""
    if dtype is None:
        return by.encode_top_k(centred, *encoder, k=k)
    many = min(candidates(k, dtype), len(encoder[0]))
    if dtype is FLOAT8:
        found = _scaled_candidates(centred, encoder, many, by)
    else:
        found = by.encode_top_k(*(part.to(dtype) for part in (centred, *encoder)), k=many)[1]
    return best_of(found, centred, encoder, k, product=by.sampled_product)


def _scaled_candidates(
    centred: Tensor, encoder: tuple[Tensor, Tensor], many: int, by: Operations
) -> Int[Tensor, "n_tokens many"]:
    table, b_enc = ScaledRows.of(encoder[0]), encoder[1]
    found = []
    for tile in centred.chunk(n_tiles(len(centred), len(b_enc))):
        product = ScaledRows.of(tile).times(table)
        pre_acts = product + b_enc.to(product.dtype)
        found.append(by.select(pre_acts, by.block_maxima(pre_acts), k=many)[1])
    return torch.cat(found)


def _losses(
    weights: manual_gradients.Weights,
    x: Tensor,
    selected: Selected,
    graph: Graph,
    *,
    variances: Float[Tensor, " n_layers"],
    step: Operations,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the loss, the error of the first reconstruction, and the gradient of the loss in each."""
    total, errors, gradients = x.new_zeros(()), [], []
    scales = 1 / (len(x) * variances)
    of_rows = scales.repeat_interleave(len(x) // len(scales), output_size=len(x)).unsqueeze(1)
    for k, weight in graph.parts:
        error, squares = step.reconstruction_error(x, *selected.narrowed(k), weights.W_dec, weights.b_pre)
        total = total + weight * (squares.view(len(scales), -1).sum(1) * scales).sum()
        errors.append(error)
        gradients.append(error * (-2 * weight * of_rows))
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
) -> Float[Tensor, " 2"]:
    """Add AuxK's gradients and return `loss.aux_share`, without asking how many are dead: others have −∞."""
    # Of the dead alone, in as many rows as there may be of them; where they are fewer, −∞ as bias keeps the rest out.
    listed, is_one = _listed(dead, graph.room)
    encoder = weights.W_enc[listed], weights.b_enc[listed].where(is_one, -torch.inf)
    values, places = _largest(selected.centred, encoder, min(graph.k_aux, graph.room), graph.product_dtype, kernels)
    indices = listed[places]
    acts = values.relu()
    left = error - kernels.decode(acts, indices, weights.W_dec)
    found, spread = torch.stack([left.square().sum(), error.square().sum()]), (error - error.mean(0)).square().sum()
    usable = (spread > 0) & found[0].isfinite() & dead.any()
    scale = torch.where(usable, -2 * graph.aux_coef / spread.where(usable, 1.0), 0.0)
    into = (gradients.W_dec, gradients.W_enc, gradients.b_enc)
    kernels.add_latent_gradients(acts, indices, left.nan_to_num() * scale, selected.centred, weights.W_dec, *into)
    return torch.where(usable, found / spread.where(usable, 1.0), 0.0)


def _listed(dead: Tensor, room: int) -> tuple[Int[Tensor, " room"], Tensor]:
    """Return the places of the first `room` true values in their order, then zeros; and which of these are places."""
    place = dead.cumsum(0) - 1
    target = place.where(dead & (place < room), room)  # what is not listed is written behind the end
    everyone = torch.arange(len(dead), device=dead.device)
    listed = everyone.new_zeros(room + 1).scatter_(0, target, everyone)[:room]
    is_one = everyone[:room] < dead.sum()
    return listed.where(is_one, 0), is_one


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
    scalars = torch.stack([numbers[0], numbers[1], scale, numbers[3]])
    how = {"betas": [*config.betas], "eps": config.eps}
    squares = [
        step.adam(*parts, scalars, **how, sphere=sphere)
        for *parts, sphere in zip(
            tensors.weights, gradients, tensors.exp_avg, tensors.exp_avg_sq, tensors.average, spheres, strict=True
        )
    ]
    return torch.stack(squares).sum().sqrt()
