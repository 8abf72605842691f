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
_SCORES = "scores that are drawn, as of the metric family downstream,"
_ACROSS = "--across-layers"
_NEEDS: dict[str, tuple[str, str]] = {
    "dead": ("no job that has ended has a share of dead latents", ""),
    "frontier": ("no job that has ended has an L0 other than its k", ""),
    "downstream": (f"it takes two SAEs with {_SCORES} and there are none, or one", "--metrics downstream"),
    "scores-n": (f"it takes {_SCORES} of SAEs of two sizes n", "--metrics downstream"),
    "scores-l0": (f"it takes {_SCORES} of SAEs of two k", "--metrics downstream"),
    "scores-tokens": (f"it takes {_SCORES} of SAEs of two budgets", "--metrics downstream"),
    "scores-layer": (f"it takes {_SCORES} of SAEs read at two layers", "--metrics downstream"),
    "scores-position": ("no SAE has scores by position, of the metric families reconstruction and downstream",
                        "--metrics reconstruction,downstream"),
    "layers": ("no SAE has scores of the metric family layers", "--metrics layers"),
    "layers-mean": ("no SAE has scores of the metric family layers", "--metrics layers"),
    "layers-prompt": ("no SAE has a prompt's scores of the metric family layers", "--metrics layers"),
    "layers-n": ("it takes scores of the metric family layers, of SAEs of two sizes n", "--metrics layers"),
    "layers-k": ("it takes scores of the metric family layers, of SAEs of two k", "--metrics layers"),
    "layers-activations": ("no SAE has scores of the metric family layers", "--metrics layers"),
    "cross": ("no SAE was evaluated across layers", _ACROSS),
    "cross-layer": ("no SAE of several layers was evaluated across layers", _ACROSS),
    "cross-n": ("it takes SAEs of several layers and of two sizes n, evaluated across layers", _ACROSS),
    "cross-k": ("it takes SAEs of several layers and of two k, evaluated across layers", _ACROSS),
    _RESIDUALS: ("no law has been fitted to its jobs", ""),
    "lr": ("no job that has ended has a learning rate and an fvu below 1", ""),
}  # fmt: skip
"""By figure: what is missing where there is nothing to draw, and the options of `orch evaluate` that measure it."""


def figure_names() -> list[str]:
    """Return the names of all figures: those of the laws, of the jobs, and of the residuals."""
    return [*(figure.name for law in LAWS.values() for figure in law.figures), *_OF_JOBS, _RESIDUALS]


def law_of(name: str) -> LawName | None:
    """Return the law that a figure cannot do without; None where there is none."""
    needed = {figure.name: law.key for law in LAWS.values() for figure in law.figures if figure.needs_fit}
    return needed.get(name)


def needed_by(name: str, rows: Sequence[JobMeasurement]) -> tuple[str, str]:
    """Return what a figure with nothing to draw lacks, and the options of `orch evaluate` that measure it, or none."""
    if all(row.fvu is None for row in rows):
        return "none of its jobs has a curve yet", ""
    return _NEEDS.get(name, ("none of its jobs has what this figure shows", ""))


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
