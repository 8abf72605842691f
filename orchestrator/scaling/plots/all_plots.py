"""Every figure by its name, drawn from measured jobs and the laws fitted to them."""

from collections.abc import Sequence

from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.plots import cross_plots, layer_plots, score_plots
from orchestrator.scaling.plots.canvas import Drawing, styled
from orchestrator.scaling.plots.job_plots import curves, dead
from orchestrator.scaling.plots.position_plot import by_position
from orchestrator.scaling.plots.residual_plot import residuals
from orchestrator.scaling.plots.sparsity_plot import frontier
from orchestrator.scaling.types import Fit, JobMeasurement, LawName

_OF_JOBS = {
    "curves": curves, "dead": dead, "frontier": frontier, "downstream": score_plots.downstream,
    "scores-n": score_plots.by_size, "scores-l0": score_plots.by_sparsity, "scores-tokens": score_plots.by_tokens,
    "scores-layer": score_plots.by_layer,
    "scores-position": by_position,
    "layers": layer_plots.heat_maps, "layers-mean": layer_plots.means, "layers-prompt": layer_plots.prompt_maps,
    "layers-n": layer_plots.by_size, "layers-k": layer_plots.by_sparsity,
    "layers-activations": layer_plots.activations,
    "cross": cross_plots.matrices, "cross-layer": cross_plots.by_layer, "cross-n": cross_plots.by_size,
    "cross-k": cross_plots.by_sparsity,
}  # fmt: skip
_RESIDUALS = "residuals"


def figure_names() -> list[str]:
    """Return the names of all figures: those of the laws, of the jobs, and of the residuals."""
    return [*(figure.name for law in LAWS.values() for figure in law.figures), *_OF_JOBS, _RESIDUALS]


def law_of(name: str) -> LawName | None:
    """Return the law that a figure cannot do without; None where there is none."""
    needed = {figure.name: law.key for law in LAWS.values() for figure in law.figures if figure.needs_fit}
    return needed.get(name)


def draw(name: str, rows: Sequence[JobMeasurement], fits: Sequence[Fit]) -> Drawing | None:
    """Draw a figure; None where there is nothing to draw in it.

    Raises:
        KeyError: no figure of that name.
    """
    with styled(name):
        if name == _RESIDUALS:
            return residuals(fits)
        if name in _OF_JOBS:
            return _OF_JOBS[name](rows)
        of_laws = {figure.name: (law, figure) for law in LAWS.values() for figure in law.figures}
        law, figure = of_laws[name]
        return figure.draw(law, name, rows, fits)


def draw_all(rows: Sequence[JobMeasurement], fits: Sequence[Fit]) -> list[Drawing]:
    """Draw every figure there is something to draw in."""
    return [drawing for name in figure_names() if (drawing := draw(name, rows, fits)) is not None]
