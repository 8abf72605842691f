"""Figures: what is drawn is what was given, each point leads to its jobs, and a colour is never alone."""

import math
import re
from contextlib import nullcontext

import pytest
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase

from orchestrator.scaling.plots import canvas
from orchestrator.scaling.plots import svg as svg_writer
from orchestrator.scaling.plots.all_plots import draw, draw_all, figure_names
from orchestrator.scaling.plots.canvas import round_ticks
from orchestrator.scaling.plots.svg import png, svg
from tests import planted_laws as planted
from tests.svg_reading import LINK, SVG, groups, parsed, place, text_of, value_at

ROWS = planted.grid()


def test_the_points_of_the_law_are_where_the_jobs_are() -> None:
    fits = planted.fits(ROWS, "ln")
    drawing = draw("ln", ROWS, fits)
    assert drawing
    root = parsed(svg(drawing, inline=True))
    points = groups(root, r"point-\d+")
    assert set(points) == {f"figure-ln-point-{row.job_id}" for row in ROWS}
    for row in ROWS:
        x, y = place(points[f"figure-ln-point-{row.job_id}"])
        assert value_at(root, x, "x") == pytest.approx(row.n_latents, rel=1e-3)
        assert value_at(root, y, "y") == pytest.approx(row.fvu, rel=1e-3)
    assert drawing.jobs == tuple(row.job_id for row in ROWS)


def test_the_points_of_a_panel_are_one_part_of_it() -> None:
    """A part for each takes eight times as long to draw, and a fit of thousands of jobs draws thousands of them."""
    drawing = draw("ln", ROWS, planted.fits(ROWS, "ln"))
    assert drawing
    (axes,) = drawing.figure.axes
    assert len(axes.lines) == len({row.k for row in ROWS}) < len(drawing.jobs), "the law of each k alone is a line"


def test_a_point_says_its_job_and_leads_to_its_row() -> None:
    drawing = draw("ln", ROWS, planted.fits(ROWS, "ln"))
    assert drawing
    group = groups(parsed(svg(drawing, inline=True)), "point-3")["figure-ln-point-3"]
    title = group.find(f"{SVG}title")
    assert title is not None
    assert str(title.text).startswith(f"job 3: {ROWS[2].fvu:.4g}"[:12])
    assert [link.get(LINK) for link in group.iter(f"{SVG}a")] == ["#job-3"]
    alone = parsed(svg(drawing, inline=False))
    assert not list(alone.iter(f"{SVG}a")), "a file of its own has no rows to lead to"


def test_a_censored_count_is_a_ring_and_an_arrow() -> None:
    rows = planted.grid(ks=(4,))
    rows[-1] = planted.censored(rows[-1], 600_000.0)
    fits = planted.fits(rows, "tn")
    drawing = draw("tn", rows, fits)
    assert drawing
    assert "1 count censored" in drawing.caption
    root = parsed(svg(drawing, inline=True))
    group = groups(root, f"point-{rows[-1].job_id}")[f"figure-tn-point-{rows[-1].job_id}"]
    _, y = place(group)
    assert value_at(root, y, "y") == pytest.approx(600_000, rel=1e-3)
    assert f"fill: var(--paper, {canvas.PAPER})" in "".join(use.get("style") or "" for use in group.iter(f"{SVG}use"))
    (arrow,) = groups(root, f"arrow-{rows[-1].job_id}").values()
    heights = [
        float(y) for path in arrow.iter(f"{SVG}path") for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path.get("d") or "")
    ]
    assert min(heights) < y - 10, "it points up"
    assert len(groups(root, r"arrow-\d+")) == 1


def test_the_count_to_convergence_is_written_at_each_point() -> None:
    rows = [planted.job(at, 128, 4, lr=lr) for at, lr in enumerate((0.005, 0.01, 0.02), 1)]
    rows.append(planted.censored(planted.job(4, 128, 4, lr=0.04), 655_360.0))
    drawing = draw("lr", rows, [])
    assert drawing
    text = svg(drawing, inline=True)
    root = parsed(text)
    said = ["".join(one.itertext()) for one in root.iter(f"{SVG}text")]
    assert said.count("55.1k") == 3
    assert said.count(">655k") == 1
    x, _ = place(groups(root, "point-4")["figure-lr-point-4"])
    assert value_at(root, x, "x") == pytest.approx(0.04, rel=1e-3)


def test_a_diverged_job_is_a_cross_at_its_rate() -> None:
    rows = [planted.job(at, 128, 4, lr=lr) for at, lr in enumerate((0.005, 0.01, 0.02), 1)]
    rows.append(planted.job(4, 128, 4, lr=0.04, outcome="diverged", fvu=math.nan, curve=()))
    drawing = draw("lr", rows, [])
    assert drawing
    assert "diverged" in drawing.caption
    root = parsed(svg(drawing, inline=True))
    (cross,) = groups(root, "diverged-4").values()
    assert value_at(root, place(cross)[0], "x") == pytest.approx(0.04, rel=1e-3)


def test_curves_are_as_long_as_they_were_measured() -> None:
    drawing = draw("curves", ROWS[:2], [])
    assert drawing
    root = parsed(svg(drawing, inline=True))
    (path,) = groups(root, "curve-1")["figure-curves-curve-1"].iter(f"{SVG}path")
    steps = re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d") or "")
    known = [point for point in ROWS[0].curve if point.fvu <= 1]
    assert len(steps) == len(known)
    assert value_at(root, float(steps[0][0]), "x") == pytest.approx(known[0].tokens_seen, rel=1e-2)
    assert value_at(root, float(steps[-1][1]), "y") == pytest.approx(known[-1].fvu, rel=1e-2)


def test_every_law_has_its_figure() -> None:
    fits = planted.fits(ROWS)
    names = [drawing.name for drawing in draw_all(ROWS, fits)]
    assert names == ["ln", "lc", "lnk", "tn", "lr", "curves", "dead", "residuals"]
    assert draw("lr-law", ROWS, fits) is None
    for drawing in draw_all(ROWS, fits):
        assert png(drawing).startswith(b"\x89PNG")
        assert drawing.caption.endswith(".")


def test_two_sizes_of_subject_have_a_law_of_their_own_figure() -> None:
    small = planted.grid(ks=(4,))
    large = [
        planted.job(
            20 + row.job_id, row.n_latents or 0, 4, subject="larger", subject_size=5_000_000, fvu=(row.fvu or 0) * 1.3
        )
        for row in small
    ]
    fits = planted.fits([*small, *large], "ls")
    drawing = draw("ls", [*small, *large], fits)
    assert drawing
    said = ["".join(one.itertext()) for one in parsed(svg(drawing, inline=True)).iter(f"{SVG}text")]
    assert {"larger, k = 4", "shipped:stdlib-gpt2, k = 4"} <= set(said)


@pytest.mark.parametrize("name", figure_names())
def test_nothing_is_drawn_of_nothing(name: str) -> None:
    assert draw(name, [], []) is None
    broken = [planted.job(1, fvu=math.nan, curve=(), dead_share=None, outcome=None, state="running")]
    assert draw(name, broken, []) is None


def test_losses_that_are_no_numbers_are_left_out() -> None:
    rows = [*planted.grid(ks=(4,)), planted.job(99, 128, 4, fvu=math.nan, outcome="diverged", curve=())]
    for drawing in draw_all(rows, planted.fits(rows)):
        assert "nan" not in svg(drawing, inline=True).lower().replace("dominant", "")


def test_a_hostile_name_stays_text() -> None:
    rows = planted.grid(ks=(4,), subject="</title><script>alert(1)</script> $x$ -->")
    for drawing in draw_all(rows, planted.fits(rows)):
        text = svg(drawing, inline=True)
        assert "<script" not in text
        parsed(text)


def test_ids_are_unique_and_all_that_is_named_is_there() -> None:
    for drawing in draw_all(ROWS, planted.fits(ROWS)):
        text = svg(drawing, inline=True)
        ids = re.findall(r'\bid="([^"]+)"', text)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:url\(#|<use xlink:href="#)([^)"]+)', text)) <= set(ids)


def test_a_file_of_its_own_knows_light_and_dark() -> None:
    drawing = draw("ln", ROWS, planted.fits(ROWS, "ln"))
    assert drawing
    text = svg(drawing, inline=False)
    assert "prefers-color-scheme: dark" in text
    assert {"ink", "paper", "grid", "pen-1"} <= set(re.findall(r"var\(--([\w-]+),", text))
    drawn = re.findall(r"(?:fill|stroke): (#\w+)", text)
    assert not drawn, "every colour is a variable"


def test_no_two_series_differ_by_colour_alone() -> None:
    pens = canvas.pens(range(12))
    assert len({(pen.marker, str(pen.line)) for pen in pens.values()}) == 12
    assert len({pen.colour for pen in list(pens.values())[:6]}) == 6


def test_a_figure_is_drawn_twice_alike_and_changes_nothing_outside() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    fits = planted.fits(ROWS, "ln")
    texts = [svg(drawing, inline=True) for _ in range(2) if (drawing := draw("ln", ROWS, fits))]
    assert texts[0] == texts[1]
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e3, 6e5, [1e3, 1e4, 1e5]),
        (0.2, 0.45, [0.2, 0.25, 0.3, 0.35, 0.4, 0.45]),
        (0.001, 0.03, [0.001, 0.003, 0.01, 0.03]),
        (0.0118, 0.0211, [0.0125, 0.015, 0.0175, 0.02]),
        (0.37, 0.39, [0.37, 0.375, 0.38, 0.385, 0.39]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("span", [1.0001, 1.01, 1.5, 3.0, 20.0, 1e3, 1e9])
@pytest.mark.parametrize("low", [1e-6, 0.0213, 1.0, 517.0, 3e11])
def test_there_are_always_a_few_ticks(low: float, span: float) -> None:
    assert 2 <= len(round_ticks(low, low * span)) <= 8


def test_labels_stand_in_the_text() -> None:
    drawing = draw("tn", ROWS, planted.fits(ROWS, "tn"))
    assert drawing
    ticks = {text_of(tick) for tick in groups(parsed(svg(drawing, inline=True)), r"xtick_\d+").values()}
    assert ticks == {"64", "128", "256", "512", "1,024"}


class _Counted(Artist):
    """A part of a figure that counts how often it is drawn."""

    drawn = 0

    def draw(self, renderer: RendererBase) -> None:
        self.drawn += 1


@pytest.mark.parametrize("name", ["ln", "lnk", "residuals"])
def test_an_svg_is_drawn_once_and_is_what_matplotlib_lays_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib lays a figure out by drawing it to nowhere first, which took a fifth of the time of a figure."""
    fits = [*planted.fits(ROWS, "ln"), *planted.fits(ROWS, "lnk")]
    drawing, same = draw(name, ROWS, fits), draw(name, ROWS, fits)
    assert drawing
    assert same
    counted, figure = _Counted(), drawing.figure
    figure.axes[0].add_artist(counted)
    before = figure.canvas, figure.get_layout_engine(), figure.dpi
    ours = svg(drawing, inline=False)
    assert counted.drawn == 1
    assert (figure.canvas, figure.get_layout_engine(), figure.dpi) == before
    monkeypatch.setattr(svg_writer, "_laid_out", nullcontext)
    assert svg(same, inline=False) == ours
