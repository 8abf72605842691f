"""The frontier of fvu and L0: of relu and jumprelu, whose sparsity their penalty sets."""

from orchestrator.scaling.plots.all_plots import draw
from orchestrator.scaling.plots.sparsity_plot import unbeaten
from orchestrator.scaling.plots.svg import svg
from orchestrator.scaling.types import JobMeasurement
from tests import planted_laws as planted
from tests.svg_reading import groups, parsed


def jobs() -> list[JobMeasurement]:
    reached = {
        "relu": [(4.0, 0.60), (9.0, 0.45), (20.0, 0.35), (12.0, 0.50)],
        "jumprelu": [(5.0, 0.40), (10.0, 0.30), (22.0, 0.22)],
    }
    pairs = [(name, l0, fvu) for name, points in reached.items() for l0, fvu in points]
    return [
        planted.job(at, 128, 32, activation=name, l0=l0, fvu=fvu, outcome="max_tokens")
        for at, (name, l0, fvu) in enumerate(pairs, 1)
    ]


def test_the_frontier_is_of_the_jobs_that_none_beats() -> None:
    relu = [row for row in jobs() if row.activation == "relu"]
    assert [row.job_id for row in unbeaten(relu)] == [1, 2, 3], "job 4 is less sparse than job 2, and worse"


def test_every_job_is_a_point_and_each_activation_a_line() -> None:
    drawing = draw("frontier", jobs(), [])
    assert drawing
    root = parsed(svg(drawing, inline=True))
    assert all(groups(root, f"point-{at}") for at in range(1, 8))
    said = " ".join("".join(one.itertext()) for one in root.iter() if one.tag.endswith("text"))
    assert "jumprelu" in said
    assert "L0 (active latents per token)" in said


def test_where_k_sets_the_sparsity_there_is_no_frontier_of_it() -> None:
    assert draw("frontier", planted.grid(), []) is None
    broken = [planted.job(1, 128, 32, activation="relu", l0=0.0, fvu=1.2, outcome="diverged")]
    assert draw("frontier", broken, []) is None
