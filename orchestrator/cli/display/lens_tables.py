"""Tuned lenses as tables: all of them, one layer by layer, and the curve of one in training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.cli import terminal
from orchestrator.cli.display.columns import COLOURS
from orchestrator.cli.display.formats import clock
from orchestrator.cli.display.tables import Column, table
from orchestrator.formatting import NONE, count, duration

if TYPE_CHECKING:
    from orchestrator.curves.lens_curve import LensPoint
    from orchestrator.lenses import LensEntry
    from orchestrator.results import ConvergenceRow

_WITHOUT = {"diverged": "none was kept: its KL rose, or was not finite; train it with a lower --lr"}
"""Of outcomes that leave no lens, what to do."""


def nats(value: float | None) -> str:
    """Return a KL, in nats per token."""
    return NONE if value is None else f"{value:.4g}" if value >= 1e-3 or value == 0 else f"{value:.2e}"


def lens_columns(*, wide: bool = False) -> "list[Column[LensEntry]]":
    """Return the columns for lenses."""
    columns: list[Column[LensEntry]] = [
        Column("LENS", lambda row: row.label),
        Column("JOB", lambda row: str(row.job_id or NONE), right=True),
        Column("MODEL", _model, weight=7, least=12),
        Column("LAYERS", lambda row: str(row.n_layers or NONE), right=True),
        Column("KL", lambda row: nats(row.kl), right=True),
        Column("LOGIT LENS", lambda row: nats(_mean(row.logit_lens_kls)), right=True),
        Column("WORST COND", lambda row: _condition(max(row.conditions or [], default=None)), right=True, weight=4),
        Column("TOKENS", _tokens_seen, right=True, weight=3),
        Column("STATE", _state),
    ]
    more: list[Column[LensEntry]] = [
        Column("SOURCE", lambda row: row.source),
        Column("SHA256", lambda row: row.sha256 or NONE),
        Column("FOLDER", lambda row: row.uri or NONE),
    ]
    return columns + (more if wide else [])


def lens_lines(row: "LensEntry", counts: "Sequence[ConvergenceRow]", *, width: int | None) -> list[str]:
    """Return all that is known of a lens: facts a line each, then its layers as a table."""
    text = f"{count(row.measured_tokens)} held-out tokens of {row.measured_on}" if row.measured_tokens else None
    took = f" in {duration(row.wall_seconds)}" if row.wall_seconds else ""
    trained = f"{_tokens_seen(row)} tokens{took}" if row.tokens_seen else None
    reached = {one.epsilon: one for one in counts}.get(0.01)
    shown = {
        "lens": row.label,
        "from": row.source,
        "state": _state(row),
        "no lens": _WITHOUT.get(row.outcome or ""),
        "model": f"{_model(row)}, {row.dtype}",
        "sha256": row.sha256,
        "trained on": trained,
        "T(1%)": None if reached is None or row.outcome in _WITHOUT else _tokens(reached),
        "measured on": text,
        "created": clock(row.created_at),
        "folder": row.uri,
    }
    lines = [f"  {terminal.style(f'{name:<14}', dim=True)}{value}" for name, value in shown.items() if value]
    layers = _layers(row)
    return [*lines, "", *table(layers, _layer_columns(), width=width)] if layers else lines


def lens_curve_columns(points: "Sequence[LensPoint]") -> "list[Column[LensPoint]]":
    """Return the columns for the curve of a lens; the KLs of one layer are one under the other."""
    widths = [max(map(len, map(nats, kls))) for kls in zip(*(point.kls for point in points), strict=True)]

    def by_layer(point: "LensPoint") -> str:
        return "  ".join(nats(kl).rjust(width) for kl, width in zip(point.kls, widths, strict=True))

    return [
        Column("TOKENS", lambda point: count(point.tokens_seen), right=True),
        Column("KL", lambda point: nats(point.kl), right=True),
        Column("BY LAYER", by_layer),
        Column("LOSS", lambda point: nats(point.loss), right=True),
        Column("GRAD", lambda point: f"{point.grad_norm:.3g}", right=True),
        Column("TIME", lambda point: duration(point.wall_seconds), right=True),
    ]


class _Layer(NamedTuple):
    layer: int
    kl: float | None
    logit_lens_kl: float | None
    condition: float | None


def _layers(row: "LensEntry") -> list[_Layer]:
    known = (row.kls, row.logit_lens_kls, row.conditions)
    unknown = [None] * max(len(one or ()) for one in known)
    found = zip(*(one or unknown for one in known), strict=True)
    return [_Layer(layer, *values) for layer, values in enumerate(found)]


def _layer_columns() -> list[Column[_Layer]]:
    return [
        Column("LAYER", lambda row: str(row.layer), right=True),
        Column("KL", lambda row: nats(row.kl), right=True),
        Column("LOGIT LENS", lambda row: nats(row.logit_lens_kl), right=True),
        Column("CONDITION", lambda row: _condition(row.condition), right=True),
    ]


def _model(row: "LensEntry") -> str:
    return row.model + (f"@{row.revision}" if row.revision else "")


def _state(row: "LensEntry") -> str:
    if row.state is None:
        return "brought in"
    return terminal.style(row.outcome or row.state, fg=COLOURS[row.state])


def _tokens_seen(row: "LensEntry") -> str:
    """Return how many tokens a lens was trained on; of one whose job has no result how far that is."""
    is_open = row.outcome is None and row.job_id is not None and row.tokens_seen is not None
    return f"{count(row.tokens_seen)} of {count(row.max_tokens)}" if is_open else count(row.tokens_seen)


def _mean(kls: Sequence[float] | None) -> float | None:
    from orchestrator.curves.lens_curve import mean_kl

    return mean_kl(kls) if kls else None


def _condition(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _tokens(found: "ConvergenceRow") -> str | None:
    if found.tokens:
        interval = f" (90%: {count(found.low)} to {count(found.high)})" if found.low else ""
        return f"{count(found.tokens)} tokens{interval}"
    return f"> {count(found.lower_bound)} tokens" if found.lower_bound else None
