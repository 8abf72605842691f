"""Jobs whose SAE reads several layers as they are at one of them: in place of the means, what was found there."""

import math
from collections.abc import Sequence
from dataclasses import replace

from orchestrator.curves.limit import Count, Tail, settled
from orchestrator.curves.outcome import constant_rate
from orchestrator.curves.point import LayerPoint, Point
from orchestrator.curves.resting import resting_points
from orchestrator.scaling.types import Fit, JobMeasurement


def at_layer(row: JobMeasurement, layer: int) -> JobMeasurement:
    """Return a job with the curve of one of the layers that its SAE reads; one that reads no such layer as it is.

    Loss, L0, dead latents, L∞ and tokens to convergence are of that layer, and the hook point says so. Its outcome
    stays: convergence is judged on the mean.
    """
    if row.layer is not None or layer not in row.layers:
        return row
    curve = curve_at(row.curve, layer)
    last, (tail, counts) = curve[-1] if curve else None, _settled(row, curve)
    return replace(
        row, layer=layer, hook=f"{row.hook}, at layer {layer}", curve=curve,
        fvu=last and last.fvu, l0=last and last.l0, dead_share=last and _known(last.dead_share),
        l_inf=tail.l_inf if tail else None, l_inf_se=tail.l_inf_se if tail else None,
        tokens_to_convergence={one.epsilon: one.tokens for one in counts},
        tokens_lower_bound={one.epsilon: one.lower_bound for one in counts},
        tokens_interval={one.epsilon: (one.low, one.high) for one in counts if one.low and one.high},
    )  # fmt: skip


def curve_at(curve: Sequence[Point], layer: int) -> tuple[Point, ...]:
    """Return the points of a curve with what was found at one layer; without those that tell nothing of it."""
    found = ((point, one) for point in curve for one in point.by_layer or () if one.layer == layer)
    return tuple(_point_at(point, one) for point, one in found)


def curve_in(fit: Fit, row: JobMeasurement) -> tuple[Point, ...]:
    """Return the curve of a job as a fit has it: of one layer where the fit is of that."""
    layer = fit.options.get("layer")
    return curve_at(row.curve, layer) if isinstance(layer, int) and row.layer is None else row.curve


def _point_at(point: Point, one: LayerPoint) -> Point:
    fvu, l0, dead = (math.nan if value is None else value for value in (one.fvu, one.l0, one.dead_share))
    return point._replace(fvu=fvu, l0=l0, dead_share=dead)


def _settled(row: JobMeasurement, curve: Sequence[Point]) -> tuple[Tail | None, list[Count]]:
    """Return the end of an ended job's curve, and its tokens to convergence."""
    if row.outcome is None:
        return None, []
    schedule = {"warmup_tokens": row.warmup_tokens, "decay_tokens": row.decay_tokens, "max_tokens": row.max_tokens}
    return settled(constant_rate(resting_points(curve), **schedule), row.outcome)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
