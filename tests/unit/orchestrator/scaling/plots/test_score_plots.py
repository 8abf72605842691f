"""Figures of scores: each SAE a point that names its job, with its interval; a power law through those of one k."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from orchestrator.formatting import Interval
from orchestrator.scaling.plots import score_plots
from orchestrator.scaling.plots.canvas import Drawing, styled
from orchestrator.scaling.plots.position_plot import by_position
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured


def scored(n: int, k: int, *, layer: int | None = None, seed: int = 0) -> JobMeasurement:
    fvu = 0.9 * n**-0.2 * k**-0.3
    loss = 2.0 * fvu**1.5
    scores = {"delta_ce": Interval(loss, 0.9 * loss, 1.1 * loss), "kl": Interval(loss / 2, math.nan, math.nan)}
    return measured(n, k, fvu, l0=float(k), scores=scores, layer=layer, seed=seed, hook=f"resid_post of h.{layer or 3}")


GRID = [scored(n, k) for n in (64, 256, 1024) for k in (4, 8)]


def drawn(figure: Callable[[list[JobMeasurement]], Drawing | None], rows: list[JobMeasurement]) -> Drawing:
    with styled("scores"):
        found = figure(rows)
    assert found is not None
    return found


def test_a_caption_speaks_of_scores_that_are_drawn() -> None:
    """It said of every figure in which direction N2G's F1 is better."""
    assert drawn(score_plots.by_size, GRID).caption.endswith("Lower is better.")
    with_n2g = [replace(row, scores={**row.scores, "n2g_f1": Interval(0.5, 0.4, 0.6)}) for row in GRID]
    assert drawn(score_plots.by_size, with_n2g).caption.endswith("Lower is better, of N2G higher.")


@pytest.mark.parametrize("figure", [score_plots.by_size, score_plots.by_sparsity, score_plots.downstream])
def test_every_sae_is_a_point_that_names_its_job_and_interval(
    figure: Callable[[list[JobMeasurement]], Drawing | None],
) -> None:
    found = drawn(figure, GRID)
    assert found.jobs == tuple(sorted(row.job_id for row in GRID))
    row = GRID[0]
    (hint,) = [hint for hint in found.hints.values() if f"job {row.job_id} " in hint and "delta_ce" in hint]
    assert f"(n = {row.n_latents}, k = {row.k}, seed 0): delta_ce" in hint
    assert "[" in hint
    assert len(found.figure.axes) == 2, "ΔCE and KL: there is a panel for each score that there is"


def test_the_power_law_of_one_k_is_found_and_told() -> None:
    found = drawn(score_plots.downstream, GRID)
    assert "delta_ce at k = 4: ∝ fvu^1.50 ± 0.00" in found.caption
    law = score_plots.power_law([(x, 3.0 * x**1.5) for x in (0.1, 0.2, 0.4)])
    assert law is not None
    assert (law.exponent, law.at(1.0)) == pytest.approx((1.5, 3.0))
    assert score_plots.power_law([(0.1, 1.0), (0.2, 2.0)]) is None, "two points are on any line"
    seeds = [scored(n, 4, seed=seed) for n in (64, 256) for seed in range(3)]
    seeds = [replace(row, fvu=(row.fvu or 0.0) * (1 + 0.01 * row.seed)) for row in seeds]
    assert "power laws" not in drawn(score_plots.downstream, seeds).caption, "seeds are no sizes"


def test_layers_have_a_figure_where_there_are_several() -> None:
    layers = [scored(64, 4, layer=layer) for layer in (0, 1, 2)]
    assert drawn(score_plots.by_layer, layers).jobs == tuple(sorted(row.job_id for row in layers))
    assert score_plots.by_layer(GRID) is None


def test_budgets_have_a_figure_where_one_size_has_several() -> None:
    short, long = (replace(row, max_tokens=at, tokens_seen=at) for row, at in ((GRID[0], 1000), (scored(64, 4), 4000)))
    found = drawn(score_plots.by_tokens, [*GRID[1:], short, long])
    assert found.jobs == tuple(sorted((short.job_id, long.job_id))), "of other sizes there is one budget"
    assert found.figure.axes[0].get_xlabel() == "training tokens"
    assert score_plots.by_tokens(GRID) is None


def test_of_several_rates_at_a_layer_the_best_is_drawn_and_which_it_is() -> None:
    rows = [
        replace(scored(64, 4, layer=layer), lr=lr, fvu=fvu, tokens_to_convergence={0.01: 1e6})
        for layer in (0, 1)
        for lr, fvu in ((0.001, 0.5), (0.004, 0.3), (0.016, 0.4))
    ]
    found = drawn(score_plots.by_layer, rows)
    assert found.jobs == (rows[1].job_id, rows[4].job_id)
    labels = [axes.get_ylabel() for axes in found.figure.axes]
    assert labels[:3] == ["fvu (held out)", "tokens to within 1% of the limit", "learning rate"]
    assert any("lr 0.004" in hint for hint in found.hints.values())
    one_rate = drawn(score_plots.by_layer, [rows[0], rows[3]])
    assert "learning rate" not in [axes.get_ylabel() for axes in one_rate.figure.axes]


def test_without_scores_there_is_nothing_to_draw() -> None:
    rows = [measured(n) for n in (64, 128)]
    figures = (score_plots.by_size, score_plots.by_sparsity, score_plots.by_layer, score_plots.by_tokens)
    assert [figure(rows) for figure in (*figures, score_plots.downstream, by_position)] == [None] * 6


def test_baselines_stand_beside_the_saes_with_their_intervals() -> None:
    beside = {
        "probe_loss": 0.45, "probe_loss constant": 0.69, "probe_loss channels": 0.55, "probe_loss linear": 0.23,
        "delta_ce zero ablation": 5.0, "kl_mean": 4.0,
    }  # fmt: skip
    scores = {name: Interval(value, 0.9 * value, 1.1 * value) for name, value in beside.items()}
    rows = [replace(row, scores={**row.scores, **scores}) for row in GRID]
    rows[0] = replace(rows[0], scores={**rows[0].scores, "delta_ce zero ablation": Interval(-1.0, -1.1, -0.9)})
    found = drawn(score_plots.by_size, rows)
    assert "Grey: baselines on the same text" in found.caption
    hints = list(found.hints.values())
    assert hints.count("residual channels: probe_loss channels 0.550 [0.495, 0.605]") == 3, "at each n once"
    assert hints.count("zero ablation: delta_ce zero ablation 5 [4.50, 5.50]") == 3
    (legend,) = found.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [
        "k = 4", "k = 8", "zero ablation", "mean ablation", "constant", "residual channels", "probe of all channels",
    ]  # fmt: skip
    low, high = found.figure.axes[2].get_ylim()
    assert low < 0.2
    assert high > 0.7
    assert "Grey" not in drawn(score_plots.by_size, GRID).caption


def test_norms_are_drawn_by_layer() -> None:
    norms = [
        replace(row, scores={**row.scores, "residual_norm": Interval(10.0 + at, 9.0 + at, 11.0 + at)})
        for at, row in enumerate(scored(64, 4, layer=layer) for layer in (0, 1))
    ]
    found = drawn(score_plots.by_layer, norms)
    assert found.figure.axes[-1].get_ylabel() == "mean norm of the activations"
    assert any("residual_norm 11 [10, 12]" in hint for hint in found.hints.values())
