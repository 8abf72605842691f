"""Figures of what was measured: curves, L(C) on its envelope, fvu against the learning rate, dead latents."""

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.curves.point import Point
from orchestrator.formatting import count, digits, named, power_tick, share
from orchestrator.job_states import OPEN
from orchestrator.scaling.fit.options import flops_of
from orchestrator.scaling.one_layer import curve_in
from orchestrator.scaling.plots.canvas import FAINT, INK, Drawing, Pen, Sheet, at_sizes, linear, logarithmic, pens
from orchestrator.scaling.plots.law_plots import (
    differing_in,
    draw_law,
    draw_residual,
    fits_to_draw,
    forms_of,
    series_names,
)
from orchestrator.scaling.plots.naming import differing, in_order, place
from orchestrator.scaling.plots.panels import laid_out
from orchestrator.scaling.plots.sampling import sampled, told, with_curves
from orchestrator.scaling.types import Fit, JobMeasurement

if TYPE_CHECKING:
    from orchestrator.scaling.law import Law

Rows: TypeAlias = Sequence[JobMeasurement]
Fits: TypeAlias = Sequence[Fit]
EPSILON = 0.01
"""Of the tokens to convergence that are drawn."""
_MOST_LABELS = 3
"""Seeds of one rate whose tokens are written at their point: a longer line leaves the figure no room."""
_HIGHEST = 1.0
"""An fvu above this is worse than the mean; such points would compress the scale of all others."""


def curves(rows: Rows) -> Drawing | None:
    """Draw fvu over tokens, a line per job; a ring where it came within 1% of its limit."""
    drawn = [row for row in rows if _usable(row.curve)]
    if not drawn:
        return None
    layout = laid_out(drawn)
    sheet = Sheet("curves", panels=len(layout.panels), wide=True)
    few = sampled(drawn, _number)
    shown = set(map(_number, few))
    for panel, (name, members) in enumerate(layout.panels.items()):
        for row in members:
            if row.job_id in shown:
                _draw_curve(sheet, row, layout.pens[layout.series(row)], panel=panel)
        if len(few) < len(drawn):
            for series, pen in layout.pens.items():
                _draw_median(sheet, [row for row in members if layout.series(row) == series], pen, panel=panel)
        _curve_axes(sheet, members, panel, name, drawn)
    sheet.legend([(name, pen._replace(marker="")) for name, pen in layout.pens.items()])
    thick = " Thick: the median of all jobs of a series." if len(few) < len(drawn) else ""
    is_ringed = any(row.tokens_to_convergence.get(EPSILON) for row in few)
    ring = " Ring: within 1% of the limit of the curve." if is_ringed else ""
    return sheet.done(
        "Curves: fvu against training tokens",
        f"Held-out fvu of {named(len(drawn), 'job')}, the lower of averaged and raw weights'."
        f"{ring}{thick}{layout.left_out}",
        sampled=told(few, drawn, "curves"),
    )


def _draw_median(sheet: Sheet, members: Rows, pen: Pen, *, panel: int) -> None:
    """Draw the median of curves, where half of them or more have a point."""
    at: dict[int, list[float]] = {}
    for row in members:
        for point in _usable(row.curve):
            at.setdefault(point.tokens_seen, []).append(point.fvu)
    places = [(tokens, median(found)) for tokens, found in sorted(at.items()) if 2 * len(found) >= len(members)]
    if places:
        axes = sheet.panels[panel]
        axes.plot(*zip(*places, strict=True), color=pen.colour, linestyle=pen.line, linewidth=2.6, zorder=5)


def _draw_curve(sheet: Sheet, row: JobMeasurement, pen: Pen, *, panel: int) -> None:
    points = _usable(row.curve)
    axes = sheet.panels[panel]
    places = [(point.tokens_seen, point.fvu) for point in points]
    (line,) = axes.plot(*zip(*places, strict=True), color=pen.colour, linestyle=pen.line, linewidth=1.3, zorder=3)
    sheet.mark(
        line, "curve", jobs=(row.job_id,), hint=f"{_named(row)}: fvu {digits(row.fvu, 4)}, {row.outcome or row.state}"
    )
    tokens = row.tokens_to_convergence.get(EPSILON)
    if tokens:
        hint = f"job {row.job_id}: within 1% after {count(tokens)} tokens"
        ring = Pen(pen.colour, "o", "", hollow=True)
        sheet.point((tokens, _at(places, tokens)), ring, jobs=(row.job_id,), hint=hint, panel=panel)


def _curve_axes(sheet: Sheet, members: Rows, panel: int, title: str, everything: Rows) -> None:
    losses = [point.fvu for row in everything for point in _usable(row.curve)]
    tokens = [point.tokens_seen for row in members for point in _usable(row.curve)]
    logarithmic(sheet.panels[panel], "x", "training tokens", values=tokens)
    logarithmic(sheet.panels[panel], "y", "" if panel % sheet.columns else "fvu (held out)", values=losses)
    sheet.title(title, panel=panel)


def compute(law: "Law", name: str, rows: Rows, fits: Fits) -> Drawing | None:
    """Draw L(C): every curve over the compute it took, the envelope's points, and the law with its band."""
    drawn = fits_to_draw(law, fits)
    if not drawn:
        return None
    from matplotlib.lines import Line2D

    sheet = Sheet(name)
    axes = sheet.panels[0]
    counted = str(drawn[0].options.get("flops") or "dense")
    differs = differing_in(drawn)
    names = {id(fit): series_names(fit, differs)(fit.residuals[0]) for fit in drawn}
    colours = pens(names.values())
    of_fit = {job: colours[names[id(fit)]].colour for fit in drawn for job in fit.jobs} if len(drawn) > 1 else {}
    of_job = {job: fit for fit in drawn for job in fit.jobs}
    few = with_curves(rows)
    for row in few:
        curve = curve_in(of_job.get(row.job_id, drawn[-1]), row)
        known = [(flops_of(point, counted), point.fvu) for point in _usable(curve)]
        places = [place for place in known if place[0] > 0]
        if places:
            colour = of_fit.get(row.job_id, FAINT)
            line = Line2D(*zip(*places, strict=True), color=colour, linewidth=0.8, alpha=0.6, zorder=2)
            line.set_in_layout(False)  # it ends with the panel, whose limits are those of the envelope
            axes.add_artist(line)
            sheet.mark(line, "curve", jobs=(row.job_id,), hint=_named(row))
    for fit in drawn:
        mine = colours[names[id(fit)]]
        draw_law(sheet, law, fit, pen=mine, sizes=[point.x for point in fit.residuals], k=fit.residuals[0].k)
        for point in fit.residuals:
            draw_residual(sheet, point, mine)
    envelope = [point for fit in drawn for point in fit.residuals]
    lowest, highest = min(point.observed for point in envelope), max(point.observed for point in envelope)
    logarithmic(
        axes,
        "x",
        f"training compute C ({counted} FLOPs)",
        values=[point.x for point in envelope],
        pad=0.1,
        write=power_tick,
    )
    logarithmic(axes, "y", law.quantity.label, values=[lowest, highest], pad=0.15)
    sheet.legend([("curve of a job", Pen(FAINT, "", "-")), *colours.items()])
    thin = "Thin, in the colour of the envelope it is part of, else grey" if of_fit else "Grey"
    said = f"{thin}: the stored curves. Points: the lower envelope of all of them, in equal steps of log C."
    caption = f"{forms_of(drawn)}. {said} Band: 90% of the refits."
    return sheet.done(law.heading, caption, sampled=told(few, [row for row in rows if row.fvu is not None], "curves"))


def rates(law: "Law", name: str, rows: Rows, fits: Fits) -> Drawing | None:
    """Draw fvu against lr, a line per n, the tokens to convergence written at each point (the paper's Figure 3)."""
    known = [row for row in rows if row.lr and row.n_latents and (_is_loss(row.fvu) or row.outcome == "diverged")]
    ended = _searched([row for row in known if row.outcome])
    layout = laid_out(ended, by_budget=True)
    every = [row for members in layout.panels.values() for row in members]
    drawn = sampled(every, _number)
    shown = set(map(_number, drawn))
    losses = [row.fvu for row in drawn if row.fvu is not None and _is_loss(row.fvu)]
    if not losses:
        return None
    sheet = Sheet(name, panels=len(layout.panels), wide=len(drawn) > 12)
    for panel, (title, inside) in enumerate(layout.panels.items()):
        members = [row for row in inside if row.job_id in shown]
        for series, mine in layout.pens.items():
            _draw_rates(sheet, [row for row in members if layout.series(row) == series], mine, panel=panel)
        logarithmic(sheet.panels[panel], "x", "learning rate lr", values=[row.lr or 0 for row in members], pad=0.14)
        logarithmic(sheet.panels[panel], "y", "" if panel % sheet.columns else "fvu (held out)", values=losses, pad=0.2)
        sheet.title(title, panel=panel)
    sheet.legend(list(layout.pens.items()))
    said = "At each point: tokens to within 1% of the limit; > where training ended before. Hollow: not converged."
    more = " Crosses at the top: diverged." if any(row.outcome == "diverged" for row in drawn) else ""
    waiting = sum(row.state in OPEN for row in known)
    more += f" {named(waiting, 'job')} not drawn: not ended." if waiting else ""
    left = said + more + layout.left_out
    return sheet.done("Learning rates: fvu against lr", left, sampled=told(drawn, every, "jobs"))


def _searched(rows: Rows) -> list[JobMeasurement]:
    """Return the jobs of those k, at one place, at which several rates were tried; all where there is no such k."""
    differs = differing(rows)
    tried: dict[tuple[str, int, int | None], set[float | None]] = {}
    for row in rows:
        tried.setdefault((place(row, differs), row.k, row.n_latents), set()).add(row.lr)
    several = {(where, k) for (where, k, _), lrs in tried.items() if len(lrs) > 1}
    return [row for row in rows if not several or (place(row, differs), row.k) in several]


def _draw_rates(sheet: Sheet, members: Rows, pen: Pen, *, panel: int) -> None:
    axes = sheet.panels[panel]
    ordered = sorted((row for row in members if _is_loss(row.fvu)), key=lambda row: (row.seed, row.lr or 0))
    for seed in {row.seed for row in ordered}:
        line = [(row.lr or 0.0, row.fvu or 0.0) for row in ordered if row.seed == seed]
        axes.plot(*zip(*line, strict=True), color=pen.colour, linestyle=pen.line, linewidth=1.2, zorder=2)
    for row in ordered:
        text, at = tokens_to_convergence(row), (row.lr or 0.0, row.fvu or 0.0)
        hint = f"{_named(row)}, lr {digits(row.lr)}: fvu {digits(row.fvu, 4)}, T(1%) {text}, {row.outcome or row.state}"
        sheet.point(at, pen, jobs=(row.job_id,), hint=hint, panel=panel, hollow=row.outcome != "converged")
    for lr in {row.lr for row in ordered}:  # seeds of one rate lie upon each other: one label for all of them
        same = [row for row in ordered if row.lr == lr]
        at = (lr or 0.0, max(row.fvu or 0.0 for row in same))
        more = f" and {len(same) - _MOST_LABELS} more" if len(same) > _MOST_LABELS else ""
        text = ", ".join(map(tokens_to_convergence, same[:_MOST_LABELS])) + more
        axes.annotate(text, at, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=9, color=INK, zorder=5)
    for row in members:
        if row.outcome == "diverged" and not _is_loss(row.fvu):
            top = axes.get_xaxis_transform()
            (cross,) = axes.plot([row.lr or 0], [0.96], marker="x", color=pen.colour, linestyle="", transform=top)
            sheet.mark(cross, "diverged", jobs=(row.job_id,), hint=f"{_named(row)}, lr {digits(row.lr)}: diverged")


def tokens_to_convergence(row: JobMeasurement, epsilon: float = EPSILON) -> str:
    """Return the count to convergence; of a job that was stopped before, what it is known to exceed."""
    tokens, bound = row.tokens_to_convergence.get(epsilon), row.tokens_lower_bound.get(epsilon)
    return f">{count(bound)}" if tokens is None and bound is not None else count(tokens)


def dead(rows: Rows) -> Drawing | None:
    """Draw the share of dead latents at the end against n."""
    known = [row for row in rows if row.dead_share is not None and math.isfinite(row.dead_share) and row.n_latents]
    drawn = [row for row in known if row.outcome]
    if not drawn:
        return None
    sheet = Sheet("dead")
    differs = differing(drawn)
    groups: dict[str, list[JobMeasurement]] = {}
    for row in sorted(drawn, key=lambda row: (in_order(place(row, differs)), row.k)):
        groups.setdefault(", ".join(filter(None, (place(row, differs), f"k = {row.k}"))), []).append(row)
    colours = pens(groups)
    few = sampled(drawn, _number)
    shown = set(map(_number, few))
    for name, members in groups.items():
        at = [(row.n_latents or 0, 100 * (row.dead_share or 0)) for row in members]
        for row, where in zip(members, at, strict=True):
            if row.job_id not in shown:
                continue
            hint = f"{_named(row)}: {share(row.dead_share)} dead"
            sheet.point(where, colours[name], jobs=(row.job_id,), hint=hint, hollow=row.outcome != "converged")
        mine = colours[name]
        sheet.panels[0].plot(*zip(*_means(at), strict=True), color=mine.colour, linestyle=mine.line, linewidth=1.2)
    at_sizes(sheet.panels[0], [row.n_latents or 0 for row in drawn])
    linear(sheet.panels[0], "y", "dead latents (%)", lambda value: f"{value:g}")
    sheet.panels[0].set_ylim(0, max(1.0, sheet.panels[0].get_ylim()[1]))
    sheet.legend(list(colours.items()))
    return sheet.done(
        "Dead latents",
        "Share of latents that are dead at the end: silent for dead_after_tokens. Lines: means. Hollow: not converged.",
        sampled=told(few, drawn, "jobs"),
    )


def _means(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the mean height at each place."""
    heights: dict[float, list[float]] = {}
    for x, y in points:
        heights.setdefault(x, []).append(y)
    return [(x, sum(ys) / len(ys)) for x, ys in sorted(heights.items())]


def _number(row: JobMeasurement) -> int:
    return row.job_id


def _named(row: JobMeasurement) -> str:
    return f"job {row.job_id} (n = {row.n_latents or 'auto'}, k = {row.k}, seed {row.seed})"


def _is_loss(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and 0 < value <= _HIGHEST


def _usable(curve: Iterable[Point]) -> list[Point]:
    return [point for point in curve if point.tokens_seen > 0 and _is_loss(point.fvu)]


def _at(places: Sequence[tuple[float, float]], tokens: float) -> float:
    """Return the loss of a curve at some tokens, interpolated linearly in log tokens."""
    before = max((place for place in places if place[0] <= tokens), default=places[0])
    after = min((place for place in places if place[0] >= tokens), default=places[-1])
    if after[0] <= before[0]:
        return before[1]
    part = math.log(tokens / before[0]) / math.log(after[0] / before[0])
    return before[1] + part * (after[1] - before[1])
