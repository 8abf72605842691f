"""Figures of SAEs that were measured at several layers: the cross matrices, and scores by layer against n and k."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from orchestrator.config.evaluation.layer_variants import MATRIX_METRICS
from orchestrator.formatting import Interval, digits, interval, named, tick
from orchestrator.scaling.across_layers import SaeGroup, grouped, told_apart
from orchestrator.scaling.plots.canvas import PENS, Drawing, Pen, Sheet, at_layers, at_sizes, linear, logarithmic, pens
from orchestrator.scaling.plots.sampling import told
from orchestrator.scaling.types import JobMeasurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle
    from matplotlib.text import Text

Rows = Sequence[JobMeasurement]
LABELS = {"fvu": "fvu", "mse": "MSE", "delta_ce": "ΔCE (nats per token)", "kl": "KL (nats per token)"}
"""Of the metrics of the matrices."""
_SILENT = "share of silent latents"
_AGAINST = ("delta_ce", "kl", "fvu", "mse")
_MOST_ROWS, _MOST_COLUMNS, _MOST_PANELS = 24, 13, 12
_ROW = 0.27
"""Inches of a row of a matrix."""
_SEEDS = "intervals over the seeds, of a single one over contexts"


def matrices(rows: Rows) -> Drawing | None:
    """Draw the matrix of each metric: a row for each SAE, a column for each layer, then the mean and the variation."""
    groups = grouped(rows)
    shown, names = groups[:_MOST_ROWS], told_apart(groups)
    metrics = [metric for metric in MATRIX_METRICS if any(group.mean(metric) for group in shown)]
    if not metrics:
        return None
    sheet = Sheet("cross", panels=len(metrics), wide=True, columns=2)
    sheet.figure.set_size_inches(11.5, -(-len(metrics) // 2) * (0.8 + _ROW * len(shown)))
    for panel, metric in enumerate(metrics):
        _matrix(sheet, metric, shown, names, panel=panel)
    said = (
        "Rows: SAEs, by the layers that they are trained on. Columns: the layer at which they are measured; of an SAE "
        "of one layer its own is framed. Then the mean over the layers, and the coefficient of variation. Means over "
        f"seeds; {_SEEDS}: point at a cell. The lower, and so the better, the lighter."
    )
    return sheet.done("SAEs across layers", said, sampled=told(shown, groups, "kinds of SAEs"))


def _matrix(sheet: Sheet, metric: str, groups: Sequence[SaeGroup], names: Sequence[str], *, panel: int) -> None:
    axes = sheet.panels[panel]
    layers = sorted({layer for group in groups for layer in group.layers})
    highest = max(
        (score.value for group in groups for layer in layers if (score := group.at(metric, layer))), default=0
    )
    for row, (group, name) in enumerate(zip(groups, names, strict=True)):
        jobs = tuple(one.job_id for one in group.rows)
        for at, layer in enumerate(layers):
            score = group.at(metric, layer)
            if score is not None:
                share = min(1.0, max(0.0, score.value / highest)) if highest > 0 else 0.0
                cell = _cell(axes, (at, row), share, is_own=group.trained_on == (layer,))
                sheet.mark(cell, "cell", jobs=jobs, hint=_hint(group, name, metric, f"layer {layer}", score))
                if len(layers) <= _MOST_COLUMNS:
                    _write(axes, (at, row), score, "#ffffff" if share > 0.55 else "#111111")
        over = {"mean over layers": group.mean(metric), "coefficient of variation": group.variation(metric)}
        for at, (what, score) in enumerate(over.items(), len(layers)):
            if score is not None:
                text = _write(axes, (at, row), score)
                sheet.mark(text, "over", jobs=jobs, hint=_hint(group, name, metric, what, score))
    every = -(-len(layers) // _MOST_COLUMNS)
    ticks = [*range(0, len(layers), every), len(layers), len(layers) + 1]
    axes.set_xticks(ticks, [*(str(layer) for layer in layers[::every]), "mean", "CV"])
    axes.set_yticks(range(len(groups)), names)
    axes.set(xlim=(-0.5, len(layers) + 1.5), ylim=(len(groups) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.tick_params(length=0, labelsize=8.5)
    axes.spines[:].set_visible(False)
    sheet.title(LABELS[metric], panel=panel)


def _cell(axes: "Axes", at: tuple[int, int], share: float, *, is_own: bool) -> "Rectangle":
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    x, y = at
    cell = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colormaps["viridis_r"](share), edgecolor="none")
    axes.add_patch(cell)
    if is_own:
        axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=PENS[1], linewidth=1.6))
    return cell


def by_layer(rows: Rows) -> Drawing | None:
    """Draw scores against the layer: of SAEs of several layers, and of those of one layer, each at its own."""
    groups = grouped(rows)
    multi = [group for group in groups if group.is_multi_layer]
    if not multi:
        return None
    singles = [group for group in groups if len(group.trained_on) == 1]
    names = dict(zip((id(group) for group in multi), told_apart(multi), strict=True))
    series: dict[str, list[SaeGroup]] = {}
    for group in (*multi, *singles):
        own = f"of one layer, n = {group.first.n_latents}, k = {group.first.k}"
        series.setdefault(names.get(id(group)) or ", ".join((*_where(group, groups), own)), []).append(group)
    metrics = [
        metric for metric in (*MATRIX_METRICS, _SILENT) if any(_score(one, metric, one.layers[0]) for one in multi)
    ]
    layers = sorted({layer for group in multi for layer in group.trained_on})
    sheet, colours = Sheet("cross-layer", panels=len(metrics), wide=True), pens(series)
    for panel, metric in enumerate(metrics):
        for name, members in series.items():
            at = [(layer, group) for group in members for layer in group.layers if layer in group.trained_on]
            points = [(float(layer), _score(group, metric, layer), group) for layer, group in at]
            _line(sheet, points, (name, metric), colours[name], panel=panel)
        at_layers(sheet.panels[panel], "x", layers, "layer")
        linear(sheet.panels[panel], "y", LABELS.get(metric, metric), digits)
    sheet.legend(list(colours.items()))
    return sheet.done("Scores at each layer", f"SAEs of one layer are drawn at their own. Bars: {_SEEDS}.")


def by_size(rows: Rows) -> Drawing | None:
    """Draw scores of SAEs of several layers against n at one k, a line for each layer."""
    return _against("cross-n", "n", rows, lambda row: row.n_latents or 0, lambda row: f"k = {row.k}")


def by_sparsity(rows: Rows) -> Drawing | None:
    """Draw scores of SAEs of several layers against k at one n, a line for each layer."""
    return _against("cross-k", "k", rows, lambda row: row.k, lambda row: f"n = {tick(row.n_latents or 0)}")


def _against(
    name: str, axis: str, rows: Rows, x: Callable[[JobMeasurement], int], fixed: Callable[[JobMeasurement], str]
) -> Drawing | None:
    multi = [group for group in grouped(rows) if group.is_multi_layer]
    together: dict[str, list[SaeGroup]] = {}
    for group in multi:
        together.setdefault(", ".join((*_where(group, multi), fixed(group.first))), []).append(group)
    wanted = [
        (metric, where, members)
        for where, members in together.items()
        for metric in _AGAINST
        if len({x(group.first) for group in members if _score(group, metric, group.layers[0])}) > 1
    ]
    shown = wanted[:_MOST_PANELS]
    if not shown:
        return None
    layers = sorted({layer for _, _, members in shown for group in members for layer in group.layers})
    colours = {layer: own._replace(hollow=layer == layers[-1]) for layer, own in pens(layers).items()}
    sheet = Sheet(name, panels=len(shown), wide=True, columns=4)
    for panel, (metric, where, members) in enumerate(shown):
        for layer, own in colours.items():
            points = [(float(x(group.first)), _score(group, metric, layer), group) for group in members]
            _line(sheet, points, (f"layer {layer}", metric), own, panel=panel)
        at_sizes(sheet.panels[panel], [x(group.first) for group in members], label=axis)
        logarithmic(sheet.panels[panel], "y", LABELS[metric], pad=0.1)
        sheet.title(where, panel=panel)
    sheet.legend([(f"layer {layer}{', the last' * own.hollow}", own) for layer, own in colours.items()])
    said = f"SAEs of several layers; bars: {_SEEDS}. Rings: the last layer, which the paper shows apart."
    return sheet.done(f"Scores at each layer against {axis}", said, sampled=told(shown, wanted, "panels"))


def _line(
    sheet: Sheet, points: Sequence[tuple[float, Interval | None, SaeGroup]], named_by: tuple[str, str], own: Pen, *,
    panel: int,
) -> None:  # fmt: skip
    """Draw points with their bars, and a line through the means at each x."""
    name, metric = named_by
    heights: dict[float, list[float]] = {}
    for at, score, group in points:
        if score is None:
            continue
        heights.setdefault(at, []).append(score.value)
        jobs = tuple(row.job_id for row in group.rows)
        sheet.panels[panel].plot([at, at], [score.low, score.high], color=own.colour, linewidth=1.0, zorder=3)
        hint = _hint(group, name, metric, f"at {at:g}", score)
        sheet.point((at, score.value), own, jobs=jobs, hint=hint, panel=panel)
    line = sorted((at, sum(found) / len(found)) for at, found in heights.items())
    if line:
        places, means = zip(*line, strict=True)
        sheet.panels[panel].plot(places, means, color=own.colour, linestyle=own.line, linewidth=1.2, zorder=2)


def _score(group: SaeGroup, metric: str, layer: int) -> Interval | None:
    if metric != _SILENT:
        return group.at(metric, layer)
    alive = group.at("alive", layer)
    return None if alive is None else Interval(1 - alive.value, 1 - alive.high, 1 - alive.low)


def _where(group: SaeGroup, groups: Sequence[SaeGroup]) -> list[str]:
    """Return what a group compares in, as far as groups differ in it."""
    columns = zip(*(one.ground for one in groups), strict=True)
    return [part for part, column in zip(group.ground, columns, strict=True) if len(set(column)) > 1]


def _write(axes: "Axes", at: tuple[int, int], score: Interval, colour: str | None = None) -> "Text":
    return axes.text(*at, digits(score.value), ha="center", va="center", fontsize=7.5, color=colour)


def _hint(group: SaeGroup, name: str, metric: str, where: str, score: Interval) -> str:
    return f"{name} ({named(len(group.rows), 'seed')}), {metric}, {where}: {interval(score)}"
