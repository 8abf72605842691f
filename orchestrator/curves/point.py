"""One point of a loss curve, as the trainer measures it and the database keeps it, and where the points lie."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_POINTS_PER_DOUBLING = 4
_NAN = math.nan


class LayerPoint(NamedTuple):
    """What it found at one layer of an SAE that reads several."""

    layer: int
    """Block, counted from 0."""
    fvu: float | None
    """None where it is not finite."""
    l0: float | None
    dead_share: float | None
    """Share of latents silent at this layer for more than dead_after_tokens."""


class Point(NamedTuple):
    """What one evaluation on the held-out set found: fvu and L0 of several layers are the means over them."""

    tokens_seen: int
    """Training tokens so far."""
    fvu: float
    """Σ‖x−x̂‖² / Σ‖x−μ‖² on the held-out set (the paper's normalised MSE): the lower of averaged and raw weights'."""
    fvu_raw: float
    """With the raw weights."""
    loss: float
    """Mean training loss since the last point, AuxK included."""
    aux_loss: float
    """Mean AuxK loss since the last point, before its weight α."""
    dead_share: float
    """Share of latents silent for more than dead_after_tokens."""
    l0: float
    """Mean active latents per held-out token, of the weights that `fvu` is of."""
    grad_norm: float
    """Mean global gradient norm since the last point."""
    wall_seconds: float
    """Training time so far, over all attempts; evaluation included."""
    flops_dense: float
    """12·n·D per token, + 6·n·D per token with AuxK active."""
    flops_executed: float
    """2·n·D + 8·k·D per token, + 8·k_aux·D with AuxK active."""
    flops_subject: float
    """2 × subject parameters run × tokens captured."""
    fvu_averaged: float = math.nan
    """With the averaged weights; NaN in points of earlier versions, whose `fvu` it was."""
    aux_nothing: float = math.nan
    """What `aux_loss` is where AuxK predicts nothing, a little above 1; NaN in points of earlier versions."""
    sparsity_coef: float | None = None
    """Weight of the penalty that `sae.target_l0` has led to; None where it is fixed."""
    by_layer: tuple[LayerPoint, ...] | None = None
    """At each layer of an SAE that reads several; None where it reads one."""


def point_of(values: Mapping[str, Any]) -> Point:
    """Return the point of values by their names, as JSON has them."""
    return Point(**{**values, "by_layer": _layers(values.get("by_layer"))})


def stored_point(values: Sequence[Any]) -> Point:
    """Return the point of a stored row, `by_layer` last: what is null in it is not a number."""
    found = [_NAN if value is None else value for value in values]
    found[-1] = _layers(values[-1])
    return Point._make(found)


def _layers(stored: Sequence[Sequence[Any]] | None) -> tuple[LayerPoint, ...] | None:
    return tuple(LayerPoint(*one) for one in stored) if stored else None


def evaluation_grid(*, first_point_tokens: int, batch_tokens: int, max_tokens: int) -> list[int]:
    """Return tokens_seen of every point: first_point_tokens · 2^(i/4) in whole batches, and the end of the budget."""
    last = _whole_batches(float(max_tokens), batch_tokens)
    grid = {last}
    tokens = float(first_point_tokens)
    for i in range(1, 64 * _POINTS_PER_DOUBLING):
        grid.add(_whole_batches(tokens, batch_tokens))
        tokens = first_point_tokens * 2 ** (i / _POINTS_PER_DOUBLING)
        if tokens > last:
            break
    return sorted(tokens for tokens in grid if tokens <= last)


def _whole_batches(tokens: float, batch_tokens: int) -> int:
    return math.ceil(tokens / batch_tokens) * batch_tokens
