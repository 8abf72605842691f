"""Figures of SAEs across layers: every number of a matrix can be pointed at, and no layer is lost."""

from collections.abc import Callable

import pytest

from orchestrator.scaling.plots import cross_plots
from orchestrator.scaling.plots.canvas import Drawing, styled
from orchestrator.scaling.plots.svg import svg
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured
from tests.layer_scores import at_layers

ROWS = [
    at_layers(
        layers, {"fvu": [0.2, 0.3 + 0.01 * seed], "kl": [1.0, 2.0 * n / 64], "alive": [1.0, 0.75]}, n=n, seed=seed
    )
    for layers in ((0, 1), (0,), (1,))
    for n in (64, 256)
    for seed in (0, 1)
]
Figure = Callable[[list[JobMeasurement]], Drawing | None]


def drawn(figure: Figure, rows: list[JobMeasurement]) -> Drawing:
    with styled("cross"):
        found = figure(rows)
    assert found is not None
    return found


def test_a_matrix_has_a_row_for_each_kind_of_sae_and_a_hint_for_each_number() -> None:
    found = drawn(cross_plots.matrices, ROWS)
    assert [axes.get_title(loc="left") for axes in found.figure.axes] == ["fvu", "KL (nats per token)"]
    names = [text.get_text() for text in found.figure.axes[0].get_yticklabels()]
    assert names == [
        "layers 0, 1, n = 64", "layers 0, 1, n = 256",
        "layer 0, n = 64", "layer 1, n = 64", "layer 0, n = 256", "layer 1, n = 256",
    ]  # fmt: skip
    assert len(found.hints) == 2 * 6 * 4, "two layers, mean and variation"
    hints = list(found.hints.values())
    assert "layers 0, 1, n = 64 (2 seeds), fvu, layer 1: 0.305 [0.273, 0.337]" in hints
    assert found.jobs == tuple(sorted(row.job_id for row in ROWS))
    assert hints[0] in svg(found, inline=True)


@pytest.mark.parametrize("figure", [cross_plots.by_layer, cross_plots.by_size])
def test_every_layer_of_saes_of_several_is_drawn(figure: Figure) -> None:
    found = drawn(figure, ROWS)
    assert any("kl, at" in hint for hint in found.hints.values())
    multi = {row.job_id for row in ROWS if row.layers}
    assert multi <= set(found.jobs)


def test_silent_latents_are_drawn_by_layer() -> None:
    found = drawn(cross_plots.by_layer, ROWS)
    (hint,) = [
        hint for hint in found.hints.values() if "layers 0, 1, n = 64 " in hint and "silent" in hint and "at 1:" in hint
    ]
    assert ": 0.250" in hint


def test_without_what_they_show_there_are_no_figures() -> None:
    one_layer = [measured(64), measured(256)]
    for figure in (cross_plots.matrices, cross_plots.by_layer, cross_plots.by_size, cross_plots.by_sparsity):
        assert figure(one_layer) is None
    assert cross_plots.by_sparsity(ROWS) is None, "one k"
    singles = [row for row in ROWS if row.layer is not None]
    assert cross_plots.by_layer(singles) is None
    assert cross_plots.matrices(singles) is not None


def test_no_bar_leaves_what_its_score_can_be() -> None:
    """Of two seeds Student's t reaches six standard errors: beyond no latent silent, and below a loss of nothing."""
    rows = [
        at_layers((0, 1), {"fvu": [0.2, 0.01 + 0.02 * seed], "alive": [0.99 - 0.01 * seed, 0.5],
                           "delta_ce": [0.01 + 0.02 * seed, 0.5]}, seed=seed)
        for seed in (0, 1)
    ]  # fmt: skip
    hints = drawn(cross_plots.by_layer, rows).hints.values()
    silent, fvu, delta = (
        next(hint for hint in hints if f", {metric}, at {layer}:" in hint)
        for metric, layer in (("share of silent latents", 0), ("fvu", 1), ("delta_ce", 0))
    )
    assert silent.endswith("0.0150 [0, 0.0466]")
    assert fvu.endswith("0.0200 [0, 0.0831]")
    assert delta.endswith("0.0200 [−0.0431, 0.0831]"), "a loss may fall"
