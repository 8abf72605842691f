"""Figures of jobs: what has not ended is not drawn as a result, and nothing covers or leaves the axes."""

import re
from dataclasses import replace

import pytest

from orchestrator.report.collect import fit_everywhere
from orchestrator.scaling.plots.all_plots import draw
from orchestrator.scaling.plots.svg import svg
from orchestrator.scaling.types import Fit, JobMeasurement
from tests import planted_laws as planted
from tests.svg_reading import groups, parsed

RATES = (0.005, 0.01, 0.02)


def test_a_job_at_a_tenth_of_its_budget_is_no_point_of_the_rates() -> None:
    rows = [planted.job(at, 128, 4, lr=lr) for at, lr in enumerate(RATES, 1)]
    early = planted.job(4, 128, 4, lr=0.04, fvu=0.9, state="running", outcome=None, tokens_seen=10**5)
    cancelled = planted.job(5, 128, 4, lr=0.08, fvu=0.9, state="cancelled", outcome=None)
    drawing = draw("lr", [*rows, early, cancelled], [])
    assert drawing
    assert drawing.jobs == (1, 2, 3)
    assert "1 job not drawn: not ended." in drawing.caption
    assert draw("lr", [early], []) is None


def test_no_line_joins_two_budgets() -> None:
    rows = [
        planted.job(10 * at + step, 128, 4, lr=lr, max_tokens=tokens)
        for at, tokens in enumerate((10**5, 10**6), 1)
        for step, lr in enumerate(RATES)
    ]
    drawing = draw("lr", rows, [])
    assert drawing
    titles = [axes.get_title(loc="left") for axes in drawing.figure.axes]
    assert titles == ["k = 4, 100k tokens at most", "k = 4, 1.00M tokens at most"]
    for axes in drawing.figure.axes:
        assert max(len(line.get_xdata()) for line in axes.lines) == len(RATES)  # type: ignore[arg-type]


def test_dead_latents_are_of_jobs_that_ended_and_no_share_is_below_nothing() -> None:
    rows = [planted.job(at, n, 4, dead_share=0.0) for at, n in enumerate((64, 128), 1)]
    early = planted.job(3, 256, 4, dead_share=0.5, state="running", outcome=None)
    drawing = draw("dead", [*rows, early], [])
    assert drawing
    assert drawing.jobs == (1, 2)
    [axes] = drawing.figure.axes
    assert axes.get_ylim()[0] == 0
    assert all(tick >= 0 for tick in axes.get_yticks())


def test_dead_latents_of_two_layers_are_two_lines() -> None:
    rows = [
        planted.job(10 * layer + at, n, 4, hook=f"block {layer}", dead_share=0.1 * layer)
        for layer in (1, 3)
        for at, n in enumerate((64, 128))
    ]
    drawing = draw("dead", rows, [])
    assert drawing
    lines = [line for line in drawing.figure.axes[0].lines if len(line.get_xdata()) == 2]  # type: ignore[arg-type]
    assert len({line.get_color() for line in lines}) == len(lines) == 2
    [legend] = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["block 1, k = 4", "block 3, k = 4"]


@pytest.fixture(scope="module")
def fitted() -> tuple[list[JobMeasurement], list[Fit]]:
    """Jobs of two layers, and the laws of each."""
    rows = [
        replace(row, job_id=row.job_id + 50 * at, hook=f"resid_post of block {layer}")
        for at, layer in enumerate((1, 3))
        for row in planted.grid(ks=(4, 8))
    ]
    return rows, [one for law in ("ln", "lc", "lnk", "tn") for one in fit_everywhere(law, rows)[0]]


@pytest.mark.parametrize("name", ["ln", "lc", "lnk", "tn", "lr", "curves", "dead", "residuals"])
def test_a_legend_covers_no_data(name: str, fitted: tuple[list[JobMeasurement], list[Fit]]) -> None:
    drawing = draw(name, *fitted)
    assert drawing
    drawing.figure.draw_without_rendering()
    assert all(axes.get_legend() is None for axes in drawing.figure.axes)
    [legend] = drawing.figure.legends
    box = legend.get_window_extent()
    assert box.x1 <= drawing.figure.bbox.x1 + 1
    assert not any(box.overlaps(axes.get_window_extent()) for axes in drawing.figure.axes)


def test_the_curves_of_two_layers_have_the_colours_of_their_envelopes() -> None:
    rows = [
        replace(row, job_id=row.job_id + 50 * at, hook=f"resid_post of block {layer}")
        for at, layer in enumerate((1, 3))
        for row in planted.grid(ks=(4,))
    ]
    drawing = draw("lc", rows, fit_everywhere("lc", rows)[0])
    assert drawing
    root = parsed(svg(drawing, inline=True))
    pens = [
        re.findall(r"stroke: (var\(--[\w-]+)", "".join(path.get("style") or "" for path in group.iter()))
        for job in (1, 2, 51)
        for group in groups(root, f"curve-{job}").values()
    ]
    assert pens == [["var(--pen-1"], ["var(--pen-1"], ["var(--pen-2"]]
