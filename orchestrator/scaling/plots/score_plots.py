"""Figures of what evaluations measured: scores against n, L0, layer and position, and downstream loss against fvu."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from orchestrator.formatting import Interval, digits, tick
from orchestrator.scaling.plots.canvas import Drawing, Pen, Sheet, at_layers, at_sizes, linear, logarithmic, pens
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
}
"""The scores that are drawn, in this order. Lower is better of all but N2G's."""
_OF_TRAINING: dict[str, ScoreAxis] = {
    "fvu": ScoreAxis("fvu (held out)", is_logarithmic=True),
    "tokens": ScoreAxis("tokens to within 1% of the limit", is_logarithmic=True),
    "lr": ScoreAxis("learning rate", is_logarithmic=True),
}
"""What training measured, which is drawn by layer beside the scores."""
_DOWNSTREAM = ("delta_ce", "kl")
_BY_POSITION = {
    "fvu raw,": "fvu of raw activations", **{name: SCORES[name].label for name in _DOWNSTREAM},
    "residual_norm": "mean norm of the activations",
}  # fmt: skip
"""Scores that are drawn by position, as their keys begin, with what they are."""
_FEWEST_OF_A_LINE = 3
_OF_SCORES = "Bars: 90% intervals of each SAE. Lines: means over seeds. Lower is better{}."
_POSITION = "positions="
"""Begins the variant of a score of some positions, counted from 0: `positions=1`, `positions=2-3`."""


def by_size(rows: Rows) -> Drawing | None:
    """Draw every score against n, a line per k and place."""
    drawn, differs = _scored(rows), differing(_scored(rows))
    if len({row.n_latents for row in drawn}) < 2:
        return None
    groups = grouped(drawn, lambda row: series_of(row, differs, f"k = {row.k}"))

    def axis(sheet: Sheet, panel: int) -> None:
        at_sizes(sheet.panels[panel], [row.n_latents or 0 for row in drawn])

    return score_panels("scores-n", "Scores against n", groups, lambda row: float(row.n_latents or 0), axis)


def by_sparsity(rows: Rows) -> Drawing | None:
    """Draw every score against L0, a line per n and place."""
    drawn = [row for row in _scored(rows) if row.l0 and math.isfinite(row.l0)]
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
    known = [row for row in _scored(rows) if row.tokens_seen]
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
    known = [row for row in _scored(rows) if row.layer is not None]
    if len({row.layer for row in known}) < 2:
        return None
    best = _best_rates(known)
    several = len(best) < len({(row.hook, row.n_latents, row.k, row.seed, row.lr) for row in known})
    kinds = {name: kind for name, kind in (_OF_TRAINING | SCORES).items() if name != "lr" or several}
    drawn = [replace(row, scores={**row.scores, **_of_training(row)}) for row in best]
    groups = grouped(drawn, lambda row: f"{_site(row)}, n = {tick(row.n_latents or 0)}, k = {row.k}")

    def axis(sheet: Sheet, panel: int) -> None:
        at_layers(sheet.panels[panel], "x", [row.layer or 0 for row in drawn], "layer")

    return score_panels("scores-layer", "Scores by layer", groups, lambda row: float(row.layer or 0), axis, kinds=kinds)


def _best_rates(rows: Rows) -> list[JobMeasurement]:
    """Return of the jobs that differ in nothing but the learning rate the one of the lowest fvu."""
    alike: dict[tuple[Any, ...], list[JobMeasurement]] = {}
    for row in rows:
        alike.setdefault((row.subject, row.hook, row.data, row.activation, row.n_latents, row.k, row.seed), []).append(
            row
        )
    return [min(same, key=lambda row: (_finite(row.fvu, math.inf), row.job_id)) for same in alike.values()]


def _of_training(row: JobMeasurement) -> dict[str, Interval]:
    """Return what training measured of a job, as far as it is known, in the form of scores."""
    tokens = row.tokens_to_convergence.get(EPSILON)
    low, high = row.tokens_interval.get(EPSILON, (math.nan, math.nan))
    found = {"fvu": (row.fvu, math.nan, math.nan), "tokens": (tokens, low, high), "lr": (row.lr, math.nan, math.nan)}
    return {name: Interval(value, *ends) for name, (value, *ends) in found.items() if value and math.isfinite(value)}


def _finite(value: float | None, otherwise: float) -> float:
    return otherwise if value is None or not math.isfinite(value) else value


def downstream(rows: Rows) -> Drawing | None:
    """Draw ΔCE and KL against fvu, and through the SAEs of one k a power law where they are of three sizes or more."""
    known = [row for row in _scored(rows) if row.fvu and math.isfinite(row.fvu)]
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


def by_position(rows: Rows) -> Drawing | None:
    """Draw the scores of positions within a context, of the largest SAE of each k."""
    drawn = [row for row in _scored(rows) if any(_POSITION in name for name in row.scores)]
    keys = {key for row in drawn for key in row.scores}
    names = [name for name in _BY_POSITION if any(key.startswith(f"{name} {_POSITION}") for key in keys)]
    if not names:
        return None
    largest: dict[str, JobMeasurement] = {}
    differs = differing(drawn)
    for row in sorted(drawn, key=lambda row: (row.n_latents or 0, row.job_id)):
        largest[series_of(row, differs, f"k = {row.k}")] = row
    sheet, colours = Sheet("scores-position", panels=len(names), wide=True), pens(sorted(largest, key=in_order))
    for panel, name in enumerate(names):
        for series, row in largest.items():
            _profile(sheet, row, name, colours[series], panel=panel)
        logarithmic(sheet.panels[panel], "x", "position in the context, from 1 on", pad=0.1)
        linear(sheet.panels[panel], "y", _BY_POSITION[name], digits)
    sheet.legend(list(colours.items()))
    return sheet.done("Scores by position", "Of the largest SAE of each k. Bars: 90% intervals over contexts.")


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
) -> Drawing:  # fmt: skip
    """Draw a panel per kind of score that there is, and in each a line per series through the means at each x.

    Without a `caption` it says what points and lines are.
    """
    rows = [row for members in groups.values() for row in members]
    names = [one for one in kinds if any(one in row.scores for row in rows)]
    sheet, colours, few = Sheet(name, panels=len(names), wide=True), pens(groups), sampled(rows, lambda row: row.job_id)
    shown = {row.job_id for row in few}
    for panel, metric in enumerate(names):
        for series, members in groups.items():
            mine, pen = [row for row in members if metric in row.scores], colours[series]
            _points(sheet, [row for row in mine if row.job_id in shown], metric, pen, x=x, panel=panel)
            at = _means((x(row), row.scores[metric].value) for row in mine)
            if at:
                line = zip(*at, strict=True)
                sheet.panels[panel].plot(*line, color=pen.colour, linestyle=pen.line, linewidth=1.2, zorder=2)
        _score_axis(sheet, panel, kinds[metric], [row.scores[metric].value for row in rows if metric in row.scores])
        axis(sheet, panel)
    sheet.legend(list(colours.items()))
    caption = caption or _OF_SCORES.format(", of N2G higher" if "n2g_f1" in names else "")
    return sheet.done(title, caption, sampled=told(few, rows, "SAEs"))


def _score_axis(sheet: Sheet, panel: int, kind: ScoreAxis, values: Sequence[float]) -> None:
    axes = sheet.panels[panel]
    if kind.is_logarithmic and min(values) > 0:
        logarithmic(axes, "y", kind.label, values=values, pad=0.15)
    else:
        linear(axes, "y", kind.label, digits)


def _points(
    sheet: Sheet, rows: Rows, metric: str, pen: Pen, *, x: Callable[[JobMeasurement], float], panel: int
) -> None:
    for row in rows:
        score = row.scores[metric]
        hint = f"job {row.job_id} (n = {row.n_latents}, k = {row.k}, seed {row.seed}): {metric} {_told(score)}"
        _bar(sheet, (x(row), score), pen, panel=panel)
        sheet.point((x(row), score.value), pen, jobs=(row.job_id,), hint=hint, panel=panel)


def _profile(sheet: Sheet, row: JobMeasurement, metric: str, pen: Pen, *, panel: int) -> None:
    """Draw one SAE's score over the buckets of positions."""
    prefix = f"{metric} {_POSITION}"
    found = {key.removeprefix(prefix): score for key, score in row.scores.items() if key.startswith(prefix)}
    at = sorted((_middle(bucket), bucket, score) for bucket, score in found.items())
    for middle, bucket, score in at:
        hint = f"job {row.job_id}, {metric} at position {bucket}: {_told(score)}"
        _bar(sheet, (middle, score), pen, panel=panel)
        sheet.point((middle, score.value), pen, jobs=(row.job_id,), hint=hint, panel=panel)
    if at:
        line = [[middle for middle, _, _ in at], [score.value for _, _, score in at]]
        sheet.panels[panel].plot(*line, color=pen.colour, linestyle=pen.line, linewidth=1.2, zorder=2)


def _middle(bucket: str) -> float:
    """Return the geometric middle of a bucket of positions such as `4-7`."""
    low, _, high = bucket.partition("-")
    return math.sqrt(float(low) * float(high or low))


def _bar(sheet: Sheet, at: tuple[float, Interval], pen: Pen, *, panel: int) -> None:
    x, score = at
    if math.isfinite(score.low) and math.isfinite(score.high):
        sheet.panels[panel].plot([x, x], [score.low, score.high], color=pen.colour, linewidth=1.0, zorder=3)


def _told(score: Interval) -> str:
    known = math.isfinite(score.low) and math.isfinite(score.high)
    return digits(score.value) + (f" [{digits(score.low)}, {digits(score.high)}]" if known else "")


def _scored(rows: Rows) -> list[JobMeasurement]:
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
