"""Every figure by its name, drawn from measured jobs and the laws fitted to them."""

from collections.abc import Callable, Sequence

from orchestrator.scaling import job_figures, law_figures
from orchestrator.scaling.canvas import Drawing, styled
from orchestrator.scaling.findings import Fit, LawName, Measured

FIGURES: dict[str, Callable[[Sequence[Measured], Sequence[Fit]], Drawing | None]] = {
    "ln": law_figures.loss_by_size,
    "lc": job_figures.compute,
    "lnk": law_figures.surface,
    "tn": law_figures.tokens_by_size,
    "lr": job_figures.rates,
    "lr-law": law_figures.rate_by_size,
    "ls": law_figures.loss_by_subject,
    "curves": job_figures.curves,
    "dead": job_figures.dead,
    "residuals": law_figures.residuals,
}
LAW_OF: dict[str, LawName] = {"ln": "ln", "lc": "lc", "lnk": "lnk", "tn": "tn", "lr-law": "lr", "ls": "ls"}
"""The law a figure cannot do without."""


def draw(name: str, rows: Sequence[Measured], fits: Sequence[Fit]) -> Drawing | None:
    """Draw a figure; None where there is nothing to draw in it.

    Raises:
        KeyError: no figure of that name.
    """
    with styled(name):
        return FIGURES[name](rows, fits)


def draw_all(rows: Sequence[Measured], fits: Sequence[Fit]) -> list[Drawing]:
    """Draw every figure there is something to draw in."""
    return [drawing for name in FIGURES if (drawing := draw(name, rows, fits)) is not None]
