"""What tells the series of a panel apart: no two kinds of job share a line."""

from dataclasses import replace

import pytest

from orchestrator.scaling.plots.canvas import Pen
from orchestrator.scaling.plots.panels import MOST_PANELS, laid_out
from orchestrator.scaling.types import JobMeasurement
from tests import planted_laws as planted


def _at(layer: int, *, n: int = 128, k: int = 4, number: int = 0, **values: object) -> JobMeasurement:
    return replace(planted.job(100 * layer + number, n, k), hook=f"resid_post of block {layer}", **values)  # type: ignore[arg-type]


def test_two_layers_have_a_panel_each() -> None:
    rows = [_at(layer, n=n, number=n) for layer in (1, 3) for n in (64, 128)]
    found = laid_out(rows)
    assert {name: len(members) for name, members in found.panels.items()} == {
        "resid_post of block 1, k = 4": 2, "resid_post of block 3, k = 4": 2
    }  # fmt: skip
    assert list(found.pens) == ["n = 64", "n = 128"]


def test_sites_and_activations_of_one_size_have_a_line_each() -> None:
    """Thirteen of them were one blue line."""
    rows = [_at(layer) for layer in (*range(10), 10)] + [_at(layer, activation="relu", number=1) for layer in (2, 10)]
    found = laid_out(rows)
    assert list(found.panels) == ["n = 128, k = 4"]
    assert len(found.pens) == 13
    assert len({(pen.colour, pen.marker) for pen in found.pens.values()}) == 13
    assert len({(pen.colour, str(pen.line)) for pen in found.pens.values()}) == 13
    assert list(found.pens)[1:4] == [
        "resid_post of block 1, topk", "resid_post of block 2, relu", "resid_post of block 2, topk"
    ]  # fmt: skip
    assert list(found.pens)[-1] == "resid_post of block 10, topk", "by number"


def test_values_of_k_at_one_size_are_series() -> None:
    found = laid_out([_at(1, k=k, number=k) for k in (4, 8)])
    assert (list(found.panels), list(found.pens)) == (["n = 128"], ["k = 4", "k = 8"])
    assert all(isinstance(pen, Pen) for pen in found.pens.values())


def test_a_place_that_another_tells_is_not_named_twice() -> None:
    rows = [replace(_at(layer), subject=f"m{layer}") for layer in (1, 3)]
    assert list(laid_out(rows).pens) == ["m1", "m3"]


@pytest.mark.parametrize("by_budget", [True, False])
def test_budgets_are_parted_where_it_is_asked(by_budget: bool) -> None:
    rows = [
        _at(1, n=n, number=n + at, max_tokens=tokens) for n in (64, 128) for at, tokens in enumerate((10**5, 10**6))
    ]
    assert list(laid_out(rows, by_budget=by_budget).panels) == (
        ["k = 4, 100k tokens at most", "k = 4, 1.00M tokens at most"] if by_budget else ["k = 4"]
    )


def test_panels_that_do_not_fit_are_told() -> None:
    rows = [_at(layer, n=n, number=n) for layer in range(MOST_PANELS + 2) for n in (64, 128)]
    found = laid_out(rows)
    assert len(found.panels) == MOST_PANELS
    assert found.left_out == (
        " 2 panels more would not fit: resid_post of block 24, k = 4, resid_post of block 25, k = 4, …"
    )
