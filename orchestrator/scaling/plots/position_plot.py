"""The figure of scores by position in the context: the first one apart, buckets whose bounds double, and their mean."""

import math
from collections.abc import Sequence

from orchestrator.formatting import Interval, interval
from orchestrator.scaling.best_rates import best_rates
from orchestrator.scaling.plots.canvas import Drawing, Pen, Sheet, pens
from orchestrator.scaling.plots.naming import differing, in_order, place
from orchestrator.scaling.plots.score_plots import NORM, SCORES, ScoreAxis, bar, ends, score_axis, series_of
from orchestrator.scaling.positions import METRICS, Profile, has_positions, profile
from orchestrator.scaling.types import JobMeasurement

_AXES = {"fvu": ScoreAxis("fvu of raw activations", is_logarithmic=True), **SCORES, "residual_norm": NORM}
_CAPTION = (
    "Of the largest SAE of each k and place. Position 0 is the first token of a context, which is no part of the line; "
    "the buckets begin at the numbers below them; rings: the mean over all positions but 0. Bars: 90% intervals over "
    "contexts."
)


def by_position(rows: Sequence[JobMeasurement]) -> Drawing | None:
    """Draw fvu, ΔCE, KL and the norm of the activations by position, of the largest SAE of each k and place."""
    drawn = largest(rows)
    names = [name for name in METRICS if any(_points(profile(row, name)) for row in drawn)]
    if not names:
        return None
    differs = differing(drawn)
    series = {series_of(row, differs, f"k = {row.k}"): row for row in drawn}
    sheet, colours = Sheet("scores-position", panels=len(names), wide=True), pens(sorted(series, key=in_order))
    for panel, name in enumerate(names):
        profiles = {one: profile(row, name) for one, row in series.items()}
        last = max(map(_end, profiles.values()))
        for one, found in profiles.items():
            _draw(sheet, series[one], name, (found, colours[one], last), panel=panel)
        values = [end for found in profiles.values() for score in _points(found).values() for end in ends(score)]
        score_axis(sheet, panel, _AXES[name], values)
        _axis(sheet, panel, list(profiles.values()))
    sheet.legend(list(colours.items()))
    return sheet.done("Scores by position", _CAPTION)


def largest(rows: Sequence[JobMeasurement]) -> list[JobMeasurement]:
    """Return of the SAEs with scores by position the largest of each k and place; of several rates the best."""
    known = [row for row in best_rates(rows) if row.n_latents and has_positions(row)]
    differs = differing(known)
    found = {}
    for row in sorted(known, key=lambda row: (row.n_latents or 0, -row.seed, row.job_id)):
        found[place(row, differs), row.k] = row
    return list(found.values())


def _points(found: Profile) -> dict[str, Interval]:
    """Return what is drawn, by what it is of, in the order of the positions."""
    parts = {"0": found.first} | {_named(*bounds): score for bounds, score in found.buckets.items()}
    return {name: score for name, score in (parts | {"rest": found.rest}).items() if score is not None}


def _named(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _at(name: str, end: float) -> float:
    """Return where on the axis something lies: position 0 at 0, a bucket by the logarithm of its first position."""
    fixed = {"0": 0.0, "rest": end}
    return fixed[name] if name in fixed else 1.0 + math.log2(int(name.partition("-")[0]))


def _end(found: Profile) -> float:
    return 2.5 + math.log2(max((low for low, _ in found.buckets), default=1))


def _draw(sheet: Sheet, row: JobMeasurement, name: str, drawn: tuple[Profile, Pen, float], *, panel: int) -> None:
    (found, pen, end), line = drawn, []
    for where, score in _points(found).items():
        at = _at(where, end)
        of = "the mean over all positions but 0" if where == "rest" else f"position {where}"
        hint = f"job {row.job_id}, {name} at {of}: {interval(score)}"
        bar(sheet, (at, score), pen, panel=panel)
        sheet.point((at, score.value), pen, jobs=(row.job_id,), hint=hint, panel=panel, hollow=where == "rest")
        line += [(at, score.value)] if where not in ("0", "rest") else []
    if line:
        xs, ys = zip(*line, strict=True)
        sheet.panels[panel].plot(xs, ys, color=pen.colour, linestyle=pen.line, linewidth=1.2, zorder=2)


def _axis(sheet: Sheet, panel: int, profiles: Sequence[Profile]) -> None:
    """Give position 0 a tick and a field of its own, each bucket that of its first position."""
    axes, end = sheet.panels[panel], max(map(_end, profiles))
    starts = sorted({low for found in profiles for low, _ in found.buckets})
    axes.axvspan(-0.5, 0.5, color="#63696f", alpha=0.12, linewidth=0, zorder=0)
    axes.set_xlim(-0.5, end + 0.5)
    axes.set_xticks([0.0, *(_at(str(low), end) for low in starts), end], ["0", *map(str, starts), "rest"])
    axes.set_xlabel("position in the context; 0: the first token")
