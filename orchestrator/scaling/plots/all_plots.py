"""Every figure by its name, drawn from measured jobs and the laws fitted to them."""

from collections.abc import Callable, Sequence

from orchestrator.scaling.plots import job_plots, law_plots
from orchestrator.scaling.plots.canvas import Drawing, styled
from orchestrator.scaling.types import Fit, JobMeasurement, LawName

FIGURES: dict[str, Callable[[Sequence[JobMeasurement], Sequence[Fit]], Drawing | None]] = {
    "ln": law_plots.loss_by_size,
    "lc": job_plots.compute,
    "lnk": law_plots.surface,
    "tn": law_plots.tokens_by_size,
    "lr": job_plots.rates,
    "lr-law": law_plots.rate_by_size,
    "ls": law_plots.loss_by_subject,
    "curves": job_plots.curves,
    "dead": job_plots.dead,
    "residuals": law_plots.residuals,
}
LAW_OF: dict[str, LawName] = {"ln": "ln", "lc": "lc", "lnk": "lnk", "tn": "tn", "lr-law": "lr", "ls": "ls"}
"""The law a figure cannot do without."""


def draw(name: str, rows: Sequence[JobMeasurement], fits: Sequence[Fit]) -> Drawing | None:
    """Draw a figure; None where there is nothing to draw in it.

    Raises:
        KeyError: no figure of that name.
    """
    with styled(name):
        return FIGURES[name](rows, fits)


def draw_all(rows: Sequence[JobMeasurement], fits: Sequence[Fit]) -> list[Drawing]:
    """Draw every figure there is something to draw in."""
    return [drawing for name in FIGURES if (drawing := draw(name, rows, fits)) is not None]
