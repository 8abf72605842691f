"""Scores by position: position 0 has a place and a name of its own, every bucket its interval."""

from typing import Any

import numpy as np

from orchestrator.formatting import Interval
from orchestrator.scaling.plots.canvas import Drawing, styled
from orchestrator.scaling.plots.position_plot import by_position
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured

LABELS = {"fvu raw,": 0.1, "delta_ce": 0.5, "kl": 0.4, "residual_norm": 30.0}


def placed(n: int = 64, k: int = 4, **values: Any) -> JobMeasurement:
    parts = {"first": 2.0, "rest": 1.0, "positions=1": 0.8, "positions=2-3": 0.9, "positions=4-7": 1.1}
    scores = {
        f"{name} {part}": Interval(times * value, 0.9 * times * value, 1.1 * times * value)
        for name, value in LABELS.items()
        for part, times in parts.items()
    }
    return measured(n, k, scores=scores, **values)


def drawn(*rows: JobMeasurement) -> Drawing:
    with styled("positions"):
        found = by_position(rows)
    assert found is not None
    return found


def test_position_0_the_buckets_and_the_rest_are_drawn() -> None:
    row = placed(job_id=7)
    found = drawn(row)
    labels = [axes.get_ylabel().partition(" ")[0] for axes in found.figure.axes]
    assert labels == ["fvu", "ΔCE", "KL(clean", "mean"]
    for axes in found.figure.axes:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "2", "4", "rest"]
        line = max(axes.get_lines(), key=lambda one: np.size(one.get_xdata()))
        assert np.asarray(line.get_xdata()).tolist() == [1.0, 2.0, 3.0], (
            "neither position 0 nor the mean is on the line"
        )
    hints = set(found.hints.values())
    assert "job 7, delta_ce at position 0: 1 [0.900, 1.10]" in hints
    assert "job 7, fvu at position 2-3: 0.0900 [0.0810, 0.0990]" in hints
    assert "job 7, residual_norm at the mean over all positions but 0: 30 [27, 33]" in hints


def test_the_largest_sae_of_each_k_and_the_best_of_its_rates_is_drawn() -> None:
    rows = [placed(n, k, job_id=10 * k + at) for k in (4, 8) for at, n in enumerate((64, 256))]
    rates = [placed(256, 16, job_id=90 + at, lr=0.001 * 2**at, fvu=fvu) for at, fvu in enumerate((0.5, 0.3, 0.4))]
    assert drawn(*rows, *rates).jobs == (41, 81, 91)


def test_contexts_of_two_lengths_share_an_axis() -> None:
    short = placed(job_id=1)
    kept = {name: score for name, score in short.scores.items() if "4-7" not in name}
    short = measured(64, 8, job_id=1, scores=kept)
    ticks = [text.get_text() for text in drawn(short, placed(job_id=2)).figure.axes[0].get_xticklabels()]
    assert ticks == ["0", "1", "2", "4", "rest"]
