"""How far each point is from the law that was fitted to it."""

import math
from collections.abc import Sequence

from orchestrator.formatting import jobs_named, power_tick, share
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plots.canvas import FAINT, Drawing, Sheet, at_sizes, linear, logarithmic, pens
from orchestrator.scaling.plots.law_plots import differing_in, points_of, points_shown, series_names
from orchestrator.scaling.plots.sampling import told
from orchestrator.scaling.types import Fit

_MOST_PANELS = 4


def residuals(fits: Sequence[Fit]) -> Drawing | None:
    """Draw how far each point is from its law, a panel per law."""
    laws = list(dict.fromkeys(fit.law for fit in fits if fit.residuals))[:_MOST_PANELS]
    if not laws:
        return None
    sheet = Sheet("residuals", panels=len(laws), wide=len(laws) > 1, columns=_MOST_PANELS)
    differs = differing_in([fit for fit in fits if fit.residuals])
    names = [(fit, series_names(fit, differs)) for fit in fits]
    named_points = [(name(point), fit, point) for fit, name in names for point in fit.residuals]
    colours = pens(name for name, fit, _ in named_points if fit.law in laws)
    few = points_shown([fit for fit in fits if fit.law in laws])
    for at, law in enumerate(laws):
        points = [(name, point) for name, fit, point in named_points if fit.law == law]
        for name, point in points:
            if id(point) not in few:
                continue
            hint = f"{jobs_named(point.jobs)}: {share(math.expm1(point.log_residual), 2)} from the law"
            pen = colours[name]
            place = (point.x, 100 * math.expm1(point.log_residual))
            sheet.point(place, pen, jobs=point.jobs, hint=hint, panel=at, hollow=point.censored or bool(point.flagged))
        axes = sheet.panels[at]
        axes.axhline(0, color=FAINT, linewidth=1, zorder=1)
        axes.set_title(LAWS[law].title, loc="left")
        axes.margins(y=0.2)
        linear(axes, "y", "observed against the law (%)" if at == 0 else "", _signed)
        if LAWS[law].is_over_compute:
            logarithmic(axes, "x", "compute C (FLOPs)", values=[point.x for _, point in points], write=power_tick)
        else:
            at_sizes(axes, [int(point.x) for _, point in points], most=4)
    sheet.legend(list(colours.items()))
    return sheet.done(
        "Residuals of the laws",
        "A law that fits scatters about zero, without a trend. Hollow: censored, or left out of the fit.",
        sampled=told(few, points_of([fit for fit in fits if fit.law in laws]), "points"),
    )


def _signed(value: float) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"
