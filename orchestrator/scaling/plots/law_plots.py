"""Figures of a law and of what it was fitted to: over the size of the dictionary, and as a surface over n and k.

A figure is given its law, so that an entry of the registry can name any of them: `orchestrator.scaling.law.Figure`.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.formatting import digits, jobs_named, named
from orchestrator.scaling.fit.predict import band
from orchestrator.scaling.one_layer import curve_in
from orchestrator.scaling.plots.canvas import FAINT, INK, Drawing, Pen, Sheet, at_sizes, logarithmic, pens
from orchestrator.scaling.plots.naming import differing, place
from orchestrator.scaling.plots.sampling import sampled, told
from orchestrator.scaling.types import Fit, JobMeasurement, Residual

if TYPE_CHECKING:
    from orchestrator.scaling.law import Law

Rows: TypeAlias = Sequence[JobMeasurement]
Fits: TypeAlias = Sequence[Fit]
_STEPS = 60
"""Points of a drawn law."""
_GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "zeta": "ζ", "eta": "η"}
_LEFT_OUT = Pen(FAINT, "o", "", hollow=True)


def against_size(law: "Law", name: str, rows: Rows, fits: Fits) -> Drawing | None:
    """Draw a law over n: a line with its band per series, the points it was fitted to, and hollow what was left out.

    A series has one k, and one subject where the law compares subjects. A censored point is an arrow up.
    """
    drawn = fits_to_draw(law, fits)
    if not drawn:
        return None
    sheet = Sheet(name)
    differs = differing_in(drawn)
    colours = pens(name for fit in drawn for name in map(series_names(fit, differs), fit.residuals))
    left_out = _left_out(rows, drawn) if law.quantity.is_loss else []
    subject_sizes = {row.job_id: row.subject_size for row in rows}
    few = points_shown(drawn)
    for fit in drawn:
        for series, points in _series(fit, differs).items():
            size = subject_sizes.get(points[0].jobs[0]) if law.compares_subjects else None
            if size or not law.compares_subjects:
                places = [point.x for point in points]
                draw_law(sheet, law, fit, pen=colours[series], sizes=places, k=points[0].k, subject_size=size)
            for point in points:
                if id(point) in few:
                    draw_residual(sheet, point, colours[series])
    for row, why in sampled(left_out, lambda pair: pair[0].job_id):
        _draw_left_out(sheet, row, why)
    heights = [*(point.observed for fit in drawn for point in fit.residuals), *(r.fvu or 0.0 for r, _ in left_out)]
    sizes = [int(p.x) for fit in drawn for p in fit.residuals] + [r.n_latents or 0 for r, _ in left_out]
    at_sizes(sheet.panels[0], sizes)
    logarithmic(sheet.panels[0], "y", law.quantity.label, values=_with_predictions(drawn, heights), pad=0.1)
    sheet.legend([*colours.items(), *([("left out", _LEFT_OUT)] if left_out else [])])
    return sheet.done(law.heading, _caption(drawn, left_out), sampled=told(few, points_of(drawn), "points"))


def points_of(fits: Fits) -> list[Residual]:
    """Return the points of fits."""
    return [point for fit in fits for point in fit.residuals]


def points_shown(fits: Fits) -> set[int]:
    """Return the ids (Python's) of the points that are drawn, of very many a sample."""
    return {id(point) for point in sampled(points_of(fits), lambda point: point.jobs[0] if point.jobs else 0)}


def fits_to_draw(law: "Law", fits: Fits) -> list[Fit]:
    """Return the fits of a law that have points."""
    return [fit for fit in fits if fit.law == law.key and fit.residuals]


def forms_of(fits: Fits) -> str:
    """Return the equations of fits, each with the name of its form."""
    return "; ".join(sorted({f"{spelled(fit.equation)} ({fit.form})" for fit in fits}))


def spelled(text: str) -> str:
    """Return an equation, or a coefficient's name, with Greek letters."""
    return re.sub(r"alpha|beta|gamma|zeta|eta", lambda found: _GREEK[found[0]], text)


def differing_in(fits: Fits) -> tuple[str, ...]:
    """Return which of subject, hook point, text and activation tell fits, or the points of one, apart."""
    told = differing(fits)
    is_several = len({residual.subject for fit in fits for residual in fit.residuals}) > 1
    return ("subject", *told) if is_several and "subject" not in told else told


def series_names(fit: Fit, differs: Sequence[str]) -> Callable[[Residual], str]:
    """Return what a legend calls the series of a point of a fit: what `differs` of it, then its k and what is fixed."""
    shared = place(fit, [name for name in differs if name != "subject"])

    @cache
    def name(subject: str, k: int | None) -> str:
        of_k = "" if "k=" in fit.group or k is None else f"k={k}"
        fixed = ", ".join(filter(None, (of_k, fit.group))).replace("=", " = ")
        return ", ".join(filter(None, (subject, shared, fixed))) or fit.subject

    return lambda residual: name(residual.subject if "subject" in differs else "", residual.k)


def _series(fit: Fit, differs: Sequence[str]) -> dict[str, list[Residual]]:
    found, name = dict[str, list[Residual]](), series_names(fit, differs)
    for residual in sorted(fit.residuals, key=lambda residual: residual.x):
        found.setdefault(name(residual), []).append(residual)
    return found


def draw_law(
    sheet: Sheet,
    law: "Law",
    fit: Fit,
    *,
    pen: Pen,
    sizes: Sequence[float],
    k: int | None,
    subject_size: float | None = None,
) -> None:
    """Draw the line of a fit over some sizes and a little beyond, with the 90% band of its bootstrap."""
    low, high = math.log(min(sizes)) - 0.1, math.log(max(sizes)) + 0.25
    xs = [math.exp(low + (high - low) * at / _STEPS) for at in range(_STEPS + 1)]
    found = band(law, fit, xs, k, subject_size=subject_size)
    axes = sheet.panels[0]
    if fit.draws:
        axes.fill_between(
            xs, [v.low for v in found], [v.high for v in found], color=pen.colour, alpha=0.16, linewidth=0
        )
    (line,) = axes.plot(xs, [v.value for v in found], color=pen.colour, linestyle=pen.line, linewidth=1.6, zorder=3)
    sheet.mark(
        line, "law", jobs=(), hint=f"{spelled(fit.equation)} ({fit.form}), fitted to {named(len(fit.jobs), 'job')}"
    )


def draw_residual(sheet: Sheet, point: Residual, pen: Pen, *, panel: int = 0) -> None:
    """Draw a point a law was fitted to: an arrow where it is censored, hollow where it is flagged."""
    said = f"{'> ' if point.censored else ''}{digits(point.observed, 4)}, by the law {digits(point.predicted, 4)}"
    hint = f"{jobs_named(point.jobs)}: {said}" + (f" ({point.flagged})" if point.flagged else "")
    hollow = point.censored or bool(point.flagged)
    sheet.point((point.x, point.observed), pen, jobs=point.jobs, hint=hint, panel=panel, hollow=hollow)
    if point.censored:
        draw_arrow(sheet, point, pen.colour, panel=panel)


def draw_arrow(sheet: Sheet, point: Residual, colour: str, *, panel: int = 0) -> None:
    """Draw an arrow up from a censored point: the truth is above."""
    style = {"arrowstyle": "<|-", "color": colour, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 3.5}
    at, above = (point.x, point.observed), (0, 24)
    arrow = sheet.panels[panel].annotate(
        "", xy=at, xytext=above, textcoords="offset points", arrowprops=style, zorder=4
    )
    sheet.mark(arrow.arrow_patch, "arrow", jobs=point.jobs, hint=f"{jobs_named(point.jobs)}: censored")


def _left_out(rows: Rows, fits: Fits) -> list[tuple[JobMeasurement, str]]:
    """Return the jobs with a loss that the law was not fitted to, with the reason."""
    by_id = {row.job_id: row for row in rows}
    whys = {one.job_id: (one.why, fit) for fit in fits for one in fit.excluded}
    used = {job for fit in fits for job in fit.jobs}
    left = {job: said for job, said in whys.items() if job in by_id and job not in used}
    known = ((_as_in(fit, by_id[job]), why) for job, (why, fit) in left.items())
    return [(row, why) for row, why in known if row.n_latents and row.fvu and math.isfinite(row.fvu) and row.fvu < 1]


def _as_in(fit: Fit, row: JobMeasurement) -> JobMeasurement:
    """Return a job with the loss that a fit has of it."""
    curve = curve_in(fit, row)
    return replace(row, fvu=curve[-1].fvu if curve else None) if curve is not row.curve else row


def _draw_left_out(sheet: Sheet, row: JobMeasurement, why: str) -> None:
    hint = f"job {row.job_id}, left out: {why}; fvu {digits(row.fvu, 4)}"
    sheet.point((row.n_latents or 0, row.fvu or 0.0), _LEFT_OUT, jobs=(row.job_id,), hint=hint)


def _with_predictions(fits: Fits, heights: list[float]) -> list[float]:
    """Return heights with those the law predicts, and room for the arrows of censored points."""
    points = [point for fit in fits for point in fit.residuals]
    return [*heights, *(point.predicted for point in points), *(1.4 * p.observed for p in points if p.censored)]


def _caption(fits: Fits, left_out: Sequence[object]) -> str:
    censored = sum(point.censored for fit in fits for point in fit.residuals)
    said = [f"Lines: {forms_of(fits)}. Bands: 90% of the bootstrap refits."]
    said += [f"{named(censored, 'count')} censored: the arrow says that the truth is above."] if censored else []
    said += [f"Hollow grey: {named(len(left_out), 'job')} left out of the fit."] if left_out else []
    return " ".join(said)


def surface(law: "Law", name: str, rows: Rows, fits: Fits) -> Drawing | None:
    """Draw a law over n and k: a line per k, and the lines of equal fvu."""
    drawn = fits_to_draw(law, fits)
    if not drawn:
        return None
    fit = drawn[0]
    sheet = Sheet(name, panels=2)
    colours = pens(map(series_names(fit, ()), sorted(fit.residuals, key=lambda p: p.k or 0)))
    few = points_shown([fit])
    for series, points in _series(fit, ()).items():
        draw_law(sheet, law, fit, pen=colours[series], sizes=[point.x for point in points], k=points[0].k)
        for point in points:
            if id(point) in few:
                draw_residual(sheet, point, colours[series])
    at_sizes(sheet.panels[0], [int(point.x) for point in fit.residuals])
    logarithmic(sheet.panels[0], "y", law.quantity.label, values=[point.observed for point in fit.residuals], pad=0.1)
    sheet.legend(list(colours.items()))
    _draw_contours(sheet, law, fit, few)
    where = place(fit, differing(drawn)) or fit.group
    more = f" Only the first of {len(drawn)} fits: {where}." if len(drawn) > 1 else ""
    said = "Left: a line per k. Right: lines of equal fvu, as the law has them; dots are the jobs."
    caption = f"{spelled(fit.equation)}. {said} Bands: 90% of the bootstrap refits.{more}"
    return sheet.done(law.heading, caption, sampled=told(few, fit.residuals, "points"))


def _draw_contours(sheet: Sheet, law: "Law", fit: Fit, few: set[int]) -> None:
    sizes, ks = sorted({p.x for p in fit.residuals}), sorted({p.k or 1 for p in fit.residuals})
    xs = [sizes[0] * (sizes[-1] / sizes[0]) ** (at / 12) for at in range(13)]
    ys = sorted({round(ks[0] * (ks[-1] / ks[0]) ** (at / 8)) for at in range(9)})
    axes = sheet.panels[1]
    if len(sizes) > 1 and len(ks) > 1:
        losses = [[value.value for value in band(law, fit, xs, y)] for y in ys]
        lines = axes.contour(xs, ys, losses, levels=7, colors=[INK], linewidths=0.9, linestyles="-", alpha=0.75)
        axes.clabel(lines, fontsize=8.5, fmt=lambda level: f"{level:.3g}")
    colours = pens(p.k for p in sorted(fit.residuals, key=lambda p: p.k or 0))
    for point in (point for point in fit.residuals if id(point) in few):
        hint = f"{jobs_named(point.jobs)}: fvu {digits(point.observed, 4)}"
        sheet.point((point.x, point.k or 1), colours[point.k], jobs=point.jobs, hint=hint, panel=1)
    at_sizes(axes, [int(size) for size in sizes])
    logarithmic(axes, "y", "latents kept per token k", values=ks, pad=0.1)
    axes.set_yticks(ks, [str(k) for k in ks])
    axes.grid(visible=False)
