"""Train one sparse autoencoder: batches in, Progress out. Knows no database, tracking or queue."""

import math
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config.job import JobConfig, SaeConfig
from orchestrator.curves.point import LayerPoint, Point, evaluation_grid
from orchestrator.estimates.flops import dense_aux_flops, dense_flops, executed_aux_flops, step_flops
from worker.evaluation.reconstruction import Reconstruction, measure_reconstruction, total_spread
from worker.sae.dead_latents import silent_tokens
from worker.sae.model import SparseAutoencoder
from worker.sae.train_state import Step, TrainState, train_step

_STEPS_BETWEEN_CHECKS = 64
"""How often the summed loss is checked between points; a check makes the host wait for the device."""


class Progress(NamedTuple):
    """One step has been taken; the state may be saved here."""

    tokens_seen: int
    point: Point | None
    """The new point of the curve, at evaluation steps; its fvu is NaN if the loss stopped being finite."""


class HeldoutLayer(NamedTuple):
    """The held-out vectors of one layer."""

    vectors: Float[Tensor, "n_heldout d_model"]
    spread: float
    """Σ‖x − μ‖² of them."""


def train(
    state: TrainState,
    batches: Iterable[Float[Tensor, "n_vectors d_model"]],
    *,
    config: JobConfig,
    heldout: Float[Tensor, "n_heldout d_model"],
    step: Step = train_step,
) -> Iterator[Progress]:
    """Train until max_tokens or the batches end, yielding after EVERY step.

    At a yield the state is between two steps: save it there, or leave the loop, and a later call with the restored
    state and the remaining batches continues bit for bit. Whether a point means convergence or divergence is for
    the caller to judge; after a loss that is not finite there is one more point, and the end.
    `batches` and `heldout` are NORMALISED float32, on the state's device, one layer after another. wall_seconds counts
    the time in here and in `batches`; what the caller spends elsewhere for this training it adds itself, and
    flops_subject too.
    """
    started = time.monotonic()
    grid = evaluation_tokens(config)
    layers = [HeldoutLayer(part, total_spread(part)) for part in heldout.chunk(state.n_layers)]
    if state.untrained_fvu is None:
        state.untrained_fvu = fmean(one.fvu for one in _measured(state.model, layers))
    source = iter(batches)
    while state.tokens_seen < config.training.max_tokens:
        batch = next(source, None)
        if batch is None:
            return
        before = state.tokens_seen
        step(state, batch, config)
        is_broken = state.optimizer.n_steps % _STEPS_BETWEEN_CHECKS == 0 and not state.sums.isfinite().all()
        point = None
        if is_broken or bisect_right(grid, before) < bisect_right(grid, state.tokens_seen):
            point = _point(state, batch, layers, config)
        now = time.monotonic()
        state.wall_seconds += now - started
        if point is not None:
            point = point._replace(wall_seconds=state.wall_seconds)
            state.curve.append(point)
        yield Progress(state.tokens_seen, point)
        if point is not None and not math.isfinite(point.fvu):
            return
        started = time.monotonic()


def evaluation_tokens(config: JobConfig) -> list[int]:
    """Return tokens_seen of every point of a config's curve."""
    training = config.training
    return evaluation_grid(
        first_point_tokens=training.first_point_tokens,
        batch_tokens=training.batch_tokens,
        max_tokens=training.max_tokens,
    )


def _point(state: TrainState, batch: Tensor, heldout: Sequence[HeldoutLayer], config: JobConfig) -> Point:
    """Measure average and weights; what only evaluation needs is set by the batch, and kept for the better of them."""
    averaged = state.averaged()
    for model in (averaged, state.model):
        _calibrate(model, batch)
    average, raw = (_measured(model, heldout) for model in (averaged, state.model))
    averaged_fvu, raw_fvu = (fmean(one.fvu for one in layers) for layers in (average, raw))
    is_average = not raw_fvu < averaged_fvu
    better = average if is_average else raw
    if is_average:
        for name, value in averaged.named_buffers():
            state.model.get_buffer(name).copy_(value)
    loss, aux_loss, grad_norm, aux_nothing = (state.sums / state.steps_since_point).tolist()
    state.sums.zero_()
    state.steps_since_point = 0
    flops_dense, flops_executed = flops(state, config.sae)
    return Point(
        tokens_seen=state.tokens_seen,
        fvu=(averaged_fvu if is_average else raw_fvu) if math.isfinite(loss) else math.nan,
        fvu_raw=raw_fvu,
        fvu_averaged=averaged_fvu,
        aux_nothing=aux_nothing,
        loss=loss,
        aux_loss=aux_loss,
        dead_share=state.model.share(silent_tokens(state.tokens_since_fired) > state.dead_after_tokens),
        l0=fmean(one.l0 for one in better),
        grad_norm=grad_norm,
        wall_seconds=state.wall_seconds,
        flops_dense=flops_dense,
        flops_executed=flops_executed,
        flops_subject=state.flops_subject,
        sparsity_coef=float(state.sparsity.coef) if state.sparsity else None,
        by_layer=None if state.n_layers == 1 else tuple(_by_layer(state, better, config)),
    )


def _by_layer(state: TrainState, found: Sequence[Reconstruction], config: JobConfig) -> Iterator[LayerPoint]:
    """Yield what a point found at each layer; a latent may be dead at one that fires at another."""
    for place, one, since in zip(
        config.subject.places(state.n_layers), found, state.tokens_since_fired.unbind(1), strict=True
    ):
        assert place.layer is not None, "several layers are named by their numbers"
        dead = state.model.share(since > state.dead_after_tokens)
        yield LayerPoint(place.layer, *(value if math.isfinite(value) else None for value in (*one, dead)))


@torch.no_grad()
def _calibrate(model: SparseAutoencoder, batch: Tensor) -> None:
    if model.own:
        model.function.calibrate(model.encode(batch).pre_acts, model.own, k=model.k)


def _measured(model: SparseAutoencoder, heldout: Sequence[HeldoutLayer]) -> list[Reconstruction]:
    """Return what is measured at each layer."""
    return [measure_reconstruction(model, layer.vectors, spread=layer.spread) for layer in heldout]


def flops(state: TrainState, config: SaeConfig) -> tuple[float, float]:
    """Return (dense, executed) floating-point operations so far."""
    n, d = state.model.n_latents, state.model.d_model
    seen, aux = state.n_layers * state.tokens_seen, state.n_layers * state.aux_tokens
    executed = step_flops(config, d) * seen + executed_aux_flops(state.model.k_aux, d) * aux
    return float(dense_flops(n, d) * seen + dense_aux_flops(n, d) * aux), float(executed)
