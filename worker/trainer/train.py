"""Train one sparse autoencoder: batches in, Progress out. Knows no database, tracking or queue."""

import math
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from orchestrator.config.job import JobConfig, SaeConfig
from orchestrator.curves import point as curve
from orchestrator.curves.point import Point
from orchestrator.estimates.flops import dense_aux_flops, dense_flops, executed_aux_flops, step_flops
from worker.evaluation.reconstruction import fidelity
from worker.sae.train_state import Step, TrainState, train_step

_STEPS_BETWEEN_CHECKS = 64
"""How often the summed loss is looked at between points; a look makes the host wait for the device."""


class Progress(NamedTuple):
    """One step has been taken; the trainee may be saved here."""

    tokens_seen: int
    point: Point | None
    """The new point of the curve, at evaluation steps; its fvu is NaN if the loss stopped being finite."""


def train(
    trainee: TrainState,
    batches: Iterable[Float[Tensor, "batch_tokens d_model"]],
    *,
    config: JobConfig,
    heldout: Float[Tensor, "n_tokens d_model"],
    step: Step = train_step,
) -> Iterator[Progress]:
    """Train until max_tokens or the batches end, yielding after EVERY step.

    At a yield the trainee is between two steps: save it there, or leave the loop, and a later call with the restored
    trainee and the remaining batches continues bit for bit. Whether a point means convergence or divergence is for
    the caller to judge; after a loss that is not finite there is one more point, and the end.
    `batches` and `heldout` are NORMALISED float32, on the trainee's device. wall_seconds counts the time in here and
    in `batches`, not the caller's, who adds what was spent elsewhere for the trainee, and its flops_subject.
    """
    started = time.monotonic()
    grid = evaluation_grid(config)
    if trainee.untrained_fvu is None:
        trainee.untrained_fvu = fidelity(trainee.model, heldout).fvu
    source = iter(batches)
    while trainee.tokens_seen < config.training.max_tokens:
        batch = next(source, None)
        if batch is None:
            return
        before = trainee.tokens_seen
        step(trainee, batch, config)
        is_broken = trainee.optimizer.n_steps % _STEPS_BETWEEN_CHECKS == 0 and not trainee.sums.isfinite().all()
        point = None
        if is_broken or bisect_right(grid, before) < bisect_right(grid, trainee.tokens_seen):
            point = _point(trainee, heldout, config)
        now = time.monotonic()
        trainee.wall_seconds += now - started
        if point is not None:
            point = point._replace(wall_seconds=trainee.wall_seconds)
            trainee.curve.append(point)
        yield Progress(trainee.tokens_seen, point)
        if point is not None and not math.isfinite(point.fvu):
            return
        started = time.monotonic()


def evaluation_grid(config: JobConfig) -> list[int]:
    """Return tokens_seen of every point of a config's curve."""
    training = config.training
    return curve.evaluation_grid(
        first_point_tokens=training.first_point_tokens,
        batch_tokens=training.batch_tokens,
        max_tokens=training.max_tokens,
    )


def _point(trainee: TrainState, heldout: Float[Tensor, "n_tokens d_model"], config: JobConfig) -> Point:
    averaged = fidelity(trainee.averaged(), heldout)
    loss, aux_loss, grad_norm = (trainee.sums / trainee.steps_since_point).tolist()
    trainee.sums.zero_()
    trainee.steps_since_point = 0
    flops_dense, flops_executed = flops(trainee, config.sae)
    return Point(
        tokens_seen=trainee.tokens_seen,
        fvu=averaged.fvu if math.isfinite(loss) else math.nan,
        fvu_raw=fidelity(trainee.model, heldout).fvu,
        loss=loss,
        aux_loss=aux_loss,
        dead_share=trainee.model.share(trainee.tokens_since_fired > config.training.dead_after_tokens),
        l0=averaged.l0,
        grad_norm=grad_norm,
        wall_seconds=trainee.wall_seconds,
        flops_dense=flops_dense,
        flops_executed=flops_executed,
        flops_subject=trainee.flops_subject,
    )


def flops(trainee: TrainState, config: SaeConfig) -> tuple[float, float]:
    """Return (dense, executed) floating-point operations so far."""
    n, d, seen, aux = trainee.model.n_latents, trainee.model.d_model, trainee.tokens_seen, trainee.aux_tokens
    executed = step_flops(config, d) * seen + executed_aux_flops(trainee.model.k_aux, d) * aux
    return float(dense_flops(n, d) * seen + dense_aux_flops(n, d) * aux), float(executed)
