"""Figures of what evaluations measured: scores against n, L0, tokens and layer, and downstream loss against fvu."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from orchestrator.formatting import Interval, digits, interval, tick
from orchestrator.scaling.baselines import BASELINES, LABELS
from orchestrator.scaling.best_rates import best_rates
from orchestrator.scaling.plots.canvas import FAINT, Drawing, Pen, Sheet, at_layers, at_sizes, linear, logarithmic, pens
from orchestrator.scaling.plots.job_plots import EPSILON
from orchestrator.scaling.plots.naming import differing, in_order, place
from orchestrator.scaling.plots.sampling import sampled, told
from orchestrator.scaling.types import JobMeasurement

Rows = Sequence[JobMeasurement]


class ScoreAxis(NamedTuple):
    """How a score is drawn."""

    label: str
    is_logarithmic: bool = False


SCORES: dict[str, ScoreAxis] = {
    "delta_ce": ScoreAxis("ΔCE (nats per token)", is_logarithmic=True),
    "kl": ScoreAxis("KL(clean ‖ patched), nats per token", is_logarithmic=True),
    "probe_loss": ScoreAxis("probe loss (nats per example)"),
    "n2g_f1": ScoreAxis("N2G, F1"),
    "ablation_sparsity": ScoreAxis("ablation sparsity"),
    "ablation_sparsity from start": ScoreAxis("ablation sparsity, from the start on"),
}
"""The scores that are drawn, in this order. Lower is better of all but N2G's."""
_OF_TRAINING: dict[str, ScoreAxis] = {
    "fvu": ScoreAxis("fvu (held out)", is_logarithmic=True),
    "tokens": ScoreAxis("tokens to within 1% of the limit", is_logarithmic=True),
    "lr": ScoreAxis("learning rate", is_logarithmic=True),
}
"""What training measured, which is drawn by layer beside the scores."""
NORM = ScoreAxis("mean norm of the activations", is_logarithmic=True)
_DOWNSTREAM = ("delta_ce", "kl")
_FEWEST_OF_A_LINE = 3
_BASELINE_PENS = {label: Pen(FAINT, own.marker, own.line, hollow=True) for label, own in pens(LABELS).items()}
_OF_BASELINES = (
    " Grey: baselines on the same text, which need no SAE; of probes the best single channel, or random direction of "
    "as many as there are latents."
)
_OF_SCORES = (
    "Bars: 90% intervals of each SAE. Lines: means over seeds, of several learning rates the best. Lower is better{}."
)


def by_size(rows: Rows) -> Drawing | None:
    """Draw every score against n, a line per k and place."""
    drawn = best_rates(scored(rows))
    differs = differing(drawn)
    if len({row.n_latents for row in drawn}) < 2:
        return None
    groups = grouped(drawn, lambda row: series_of(row, differs, f"k = {row.k}"))

    def axis(sheet: Sheet, panel: int) -> None:
        at_sizes(sheet.panels[panel], [row.n_latents or 0 for row in drawn])

    return score_panels("scores-n", "Scores against n", groups, lambda row: float(row.n_latents or 0), axis)


def by_sparsity(rows: Rows) -> Drawing | None:
    """Draw every score against L0, a line per n and place."""
    drawn = [row for row in best_rates(scored(rows)) if row.l0 and math.isfinite(row.l0)]
    differs = differing(drawn)
    if len({row.k for row in drawn}) < 2:
        return None
    groups = grouped(
        drawn, lambda row: ", ".join(filter(None, (place(row, differs), f"n = {tick(row.n_latents or 0)}")))
    )

    def axis(sheet: Sheet, panel: int) -> None:
        values = [row.l0 or 0.0 for row in drawn]
        logarithmic(sheet.panels[panel], "x", "L0 (active latents per token)", values=values, pad=0.1)

    return score_panels("scores-l0", "Scores against L0", groups, lambda row: row.l0 or 0.0, axis)


def by_tokens(rows: Rows) -> Drawing | None:
    """Draw every score against the training tokens of the SAEs, a line per n, k and place that has several budgets."""
    known = [row for row in best_rates(scored(rows)) if row.tokens_seen]
    differs = differing(known)
    groups = grouped(known, lambda row: series_of(row, differs, f"n = {tick(row.n_latents or 0)}, k = {row.k}"))
    groups = {name: mine for name, mine in groups.items() if len({row.max_tokens for row in mine}) > 1}
    if not groups:
        return None

    def axis(sheet: Sheet, panel: int) -> None:
        values = [row.tokens_seen for mine in groups.values() for row in mine]
        logarithmic(sheet.panels[panel], "x", "training tokens", values=values, pad=0.1)

    return score_panels("scores-tokens", "Scores against training tokens", groups, lambda row: row.tokens_seen, axis)


def by_layer(rows: Rows) -> Drawing | None:
    """Draw every score, and what training came to, against the layer that is read, a line per size and site.

    Of several learning rates at one place the best is drawn, and which it is.
    """
    known = [row for row in scored(rows) if row.layer is not None]
    if len({row.layer for row in known}) < 2:
        return None
    best = best_rates(known)
    several = len(best) < len(known)
    kinds = _OF_TRAINING | SCORES | {"residual_norm": NORM}
    kinds = {name: kind for name, kind in kinds.items() if name != "lr" or several}
    drawn = [replace(row, scores={**row.scores, **_of_training(row)}) for row in best]
    groups = grouped(drawn, lambda row: f"{_site(row)}, n = {tick(row.n_latents or 0)}, k = {row.k}")

    def axis(sheet: Sheet, panel: int) -> None:
        at_layers(sheet.panels[panel], "x", [row.layer or 0 for row in drawn], "layer")

    return score_panels(
        "scores-layer", "Scores by layer", groups, lambda row: float(row.layer or 0), axis, kinds=kinds, ground=_site
    )


def _of_training(row: JobMeasurement) -> dict[str, Interval]:
    """Return what training measured of a job, as far as it is known, in the form of scores."""
    tokens = row.tokens_to_convergence.get(EPSILON)
    low, high = row.tokens_interval.get(EPSILON, (math.nan, math.nan))
    found = {"fvu": (row.fvu, math.nan, math.nan), "tokens": (tokens, low, high), "lr": (row.lr, math.nan, math.nan)}
    return {name: Interval(value, *ends) for name, (value, *ends) in found.items() if value and math.isfinite(value)}


def downstream(rows: Rows) -> Drawing | None:
    """Draw ΔCE and KL against fvu, and through the SAEs of one k a power law where they are of three sizes or more."""
    known = [row for row in scored(rows) if row.fvu and math.isfinite(row.fvu)]
    names = [name for name in _DOWNSTREAM if any(_is_positive(row.scores.get(name)) for row in known)]
    if len(known) < 2 or not names:
        return None
    sheet, differs = Sheet("downstream", panels=len(names), wide=True), differing(known)
    groups = grouped(known, lambda row: series_of(row, differs, f"k = {row.k}"))
    colours, said = pens(groups), []
    for panel, name in enumerate(names):
        for series, members in groups.items():
            mine = [row for row in members if _is_positive(row.scores.get(name))]
            _points(sheet, mine, name, colours[series], x=lambda row: row.fvu or 0.0, panel=panel)
            sizes = {row.n_latents for row in mine}  # seeds of one size differ by chance alone
            points = [(row.fvu or 0.0, row.scores[name].value) for row in mine]
            law = power_law(points) if len(sizes) >= _FEWEST_OF_A_LINE else None
            if law is not None:
                ends = [min(row.fvu or 0.0 for row in mine), max(row.fvu or 0.0 for row in mine)]
                heights = [law.at(end) for end in ends]
                pen = colours[series]
                sheet.panels[panel].plot(ends, heights, color=pen.colour, linestyle=pen.line, linewidth=1.2, zorder=2)
                said.append(f"{name} at {series}: ∝ fvu^{law.exponent:.2f} ± {law.std_error:.2f}")
        drawn = [row for row in known if _is_positive(row.scores.get(name))]
        logarithmic(sheet.panels[panel], "x", "fvu (held out)", values=[row.fvu or 0.0 for row in drawn], pad=0.1)
        values = [row.scores[name].value for row in drawn]
        logarithmic(sheet.panels[panel], "y", SCORES[name].label, values=values, pad=0.15)
    sheet.legend(list(colours.items()))
    laws = (
        f" Lines: power laws by least squares of the logarithms; {'; '.join(said)} (one standard error)."
        if said
        else ""
    )
    return sheet.done("Downstream loss against fvu", f"Bars: 90% intervals over contexts.{laws}")


class PowerLaw(NamedTuple):
    """y = exp(intercept) · x^exponent, by least squares of the logarithms."""

    intercept: float
    exponent: float
    std_error: float
    """Of the exponent."""

    def at(self, x: float) -> float:
        """Return y."""
        return math.exp(self.intercept + self.exponent * math.log(x))


def power_law(points: Sequence[tuple[float, float]]) -> PowerLaw | None:
    """Fit a power law to positive points; None where they are fewer than three or of one x."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    n = len(logs)
    if n < _FEWEST_OF_A_LINE or len({x for x, _ in logs}) < 2:
        return None
    mean_x, mean_y = sum(x for x, _ in logs) / n, sum(y for _, y in logs) / n
    spread = sum((x - mean_x) ** 2 for x, _ in logs)
    exponent = sum((x - mean_x) * (y - mean_y) for x, y in logs) / spread
    intercept = mean_y - exponent * mean_x
    residual = sum((y - intercept - exponent * x) ** 2 for x, y in logs)
    return PowerLaw(intercept, exponent, math.sqrt(residual / (n - 2) / spread) if n > 2 else math.nan)


def score_panels(
    name: str, title: str, groups: Mapping[str, list[JobMeasurement]], x: Callable[[JobMeasurement], float],
    axis: Callable[[Sheet, int], None], *, kinds: Mapping[str, ScoreAxis] = SCORES, caption: str = "",
    ground: Callable[[JobMeasurement], str] | None = None,
) -> Drawing:  # fmt: skip
    """Draw a panel per kind of score that there is, and in each a line per series through the means at each x.

    Baselines are grey, a line for each of what `ground` tells apart; without it for each place. Without a `caption` it
    says what points and lines are.
    """
    rows = [row for members in groups.values() for row in members]
    names = [one for one in kinds if any(one in row.scores for row in rows)]
    sheet, colours, few = Sheet(name, panels=len(names), wide=True), pens(groups), sampled(rows, lambda row: row.job_id)
    shown, differs = {row.job_id for row in few}, differing(rows)
    beside = _Beside(sheet, x, ground or (lambda row: place(row, differs)))
    for panel, metric in enumerate(names):
        for series, members in groups.items():
            mine, pen = [row for row in members if metric in row.scores], colours[series]
            _points(sheet, [row for row in mine if row.job_id in shown], metric, pen, x=x, panel=panel)
            _line(sheet, _means((x(row), row.scores[metric].value) for row in mine), pen, panel=panel)
        scores = [row.scores[metric] for row in rows if metric in row.scores]
        above_0 = kinds[metric].is_logarithmic and min(score.value for score in scores) > 0
        scores += beside.draw(few, metric, panel=panel, above_0=above_0)
        values = [end for score in scores for end in ends(score) if end > 0 or not above_0]
        score_axis(sheet, panel, kinds[metric], values)
        axis(sheet, panel)
    sheet.legend([*colours.items(), *beside.pens.items()])
    caption = caption or _OF_SCORES.format(", of N2G higher" if "n2g_f1" in names else "")
    return sheet.done(title, caption + (_OF_BASELINES if beside.pens else ""), sampled=told(few, rows, "SAEs"))


@dataclass
class _Beside:
    """Baselines in the panels of a figure."""

    sheet: Sheet
    x: Callable[[JobMeasurement], float]
    ground: Callable[[JobMeasurement], str]
    pens: dict[str, Pen] = field(default_factory=dict)
    """Of those that were drawn."""

    def draw(self, rows: Rows, metric: str, *, panel: int, above_0: bool) -> list[Interval]:
        """Draw the baselines of a score, at each place and x once; return what they come to."""
        found: list[Interval] = []
        for baseline in BASELINES.get(metric, ()):
            known = [row for row in rows if baseline.key in row.scores]
            at = {(self.ground(row), self.x(row)): row for row in known}
            drawn = {key: row for key, row in at.items() if not above_0 or row.scores[baseline.key].value > 0}
            pen = _BASELINE_PENS[baseline.label]
            for (where, x), row in drawn.items():
                score = row.scores[baseline.key]
                hint = f"{baseline.label}{f' ({where})' if where else ''}: {baseline.key} {interval(score)}"
                bar(self.sheet, (x, score), pen, panel=panel)
                self.sheet.point((x, score.value), pen, jobs=(row.job_id,), hint=hint, panel=panel)
                found.append(score)
            for where in dict.fromkeys(where for where, _ in drawn):
                line = [(x, row.scores[baseline.key].value) for (of, x), row in drawn.items() if of == where]
                _line(self.sheet, sorted(line), pen, panel=panel)
            self.pens |= {baseline.label: pen} if drawn else {}
        return found


def score_axis(sheet: Sheet, panel: int, kind: ScoreAxis, values: Sequence[float]) -> None:
    """Give the vertical axis of a panel its scale and its label."""
    axes = sheet.panels[panel]
    if kind.is_logarithmic and min(values) > 0:
        logarithmic(axes, "y", kind.label, values=values, pad=0.15)
    else:
        linear(axes, "y", kind.label, digits)


def _line(sheet: Sheet, points: Sequence[tuple[float, float]], pen: Pen, *, panel: int) -> None:
    if points:
        sheet.panels[panel].plot(
            *zip(*points, strict=True), color=pen.colour, linestyle=pen.line, linewidth=1.2, zorder=2
        )


def _points(
    sheet: Sheet, rows: Rows, metric: str, pen: Pen, *, x: Callable[[JobMeasurement], float], panel: int
) -> None:
    for row in rows:
        score = row.scores[metric]
        hint = f"job {row.job_id} (n = {row.n_latents}, k = {row.k}, seed {row.seed}): {metric} {interval(score)}"
        bar(sheet, (x(row), score), pen, panel=panel)
        sheet.point((x(row), score.value), pen, jobs=(row.job_id,), hint=hint, panel=panel)


def bar(sheet: Sheet, at: tuple[float, Interval], pen: Pen, *, panel: int) -> None:
    """Draw the interval of a score."""
    x, score = at
    if math.isfinite(score.low) and math.isfinite(score.high):
        sheet.panels[panel].plot([x, x], [score.low, score.high], color=pen.colour, linewidth=1.0, zorder=3)


def ends(score: Interval) -> list[float]:
    """Return a score and the ends of its interval, as far as they are numbers."""
    return [value for value in score if math.isfinite(value)]


def scored(rows: Rows) -> list[JobMeasurement]:
    """Return the jobs whose SAEs have a score that is drawn."""
    return [row for row in rows if row.n_latents and any(name in row.scores for name in SCORES)]


def _is_positive(score: Interval | None) -> bool:
    return score is not None and math.isfinite(score.value) and score.value > 0


def grouped(rows: Rows, series: Callable[[JobMeasurement], str]) -> dict[str, list[JobMeasurement]]:
    """Return rows by what tells their series, in the order of the numbers in it."""
    groups: dict[str, list[JobMeasurement]] = {}
    for row in sorted(rows, key=lambda row: in_order(series(row))):
        groups.setdefault(series(row), []).append(row)
    return groups


def _means(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the mean height at each place, of what is finite."""
    heights: dict[float, list[float]] = {}
    for x, y in points:
        if math.isfinite(y):
            heights.setdefault(x, []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(heights.items())]


def series_of(row: JobMeasurement, differs: Sequence[str], told_by: str) -> str:
    """Return what a series is told by: the place as far as places differ, and what else."""
    return ", ".join(filter(None, (place(row, differs), told_by)))


def _site(row: JobMeasurement) -> str:
    """Return the site without its block: `resid_post` of `resid_post of transformer.h.3`."""
    return row.hook.partition(" of ")[0]
