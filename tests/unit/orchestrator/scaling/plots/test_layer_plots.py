"""Figures of layers: every latent is in the picture, which is small, and each says what it was measured on."""

import base64
import io
import math
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from orchestrator.formatting import Interval
from orchestrator.scaling.plots import layer_plots
from orchestrator.scaling.plots.all_plots import draw, draw_all
from orchestrator.scaling.plots.canvas import Drawing
from orchestrator.scaling.plots.svg import svg
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured

LAYERS = [0, 1, 2, 5]


def row(n: int = 256, k: int = 8, *, latents: int = 100, seed: int = 0, layers: list[int] = LAYERS) -> JobMeasurement:
    columns = min(latents, 128)
    values = np.zeros((len(layers), columns))
    values[np.arange(columns) * len(layers) // columns, np.arange(columns)] = 1.0
    heat_map = {"layers": layers, "latents": latents, "values": values[::-1].tolist()}
    details: dict[str, Any] = {
        "layer_mean": {
            "tokens": 16_380, "edges": [0.0, 2.5, 5.0], "counts": [latents - 7, 7], "heat_map": heat_map,
            "measured_on": "a.txt",
        },
        "prompt_latents": {"tokens": ["Mary", " gave"], "heat_map": heat_map, "measured_on": "a.txt"},
    }  # fmt: skip
    scores = {name: Interval(0.5 / k, 0.4 / k, 0.6 / k) for name in layer_plots.SCORES}
    scores |= {f"activation_norm layer={layer}": Interval(10.0 + layer, 10.0, 16.0) for layer in layers}
    pairs = [f"layers={one}-{other}" for one, other in pairwise(layers)]
    scores |= {f"adjacent_cosine {pair}": Interval(0.9, math.nan, math.nan) for pair in pairs}
    scores |= {f"adjacent_cosine raw, {pair}": Interval(0.8, 0.7, 0.9) for pair in pairs}
    return measured(n, k, scores=scores, score_details=details, seed=seed)


def drawn(name: str, rows: list[JobMeasurement]) -> Drawing:
    found = draw(name, rows, [])
    assert found is not None
    return found


@pytest.mark.parametrize(
    "name", ["layers", "layers-mean", "layers-prompt", "layers-n", "layers-k", "layers-activations"]
)
def test_without_scores_of_layers_there_is_no_figure(name: str) -> None:
    assert draw(name, [measured(64), measured(128)], []) is None
    assert not any(drawing.name.startswith("layers") for drawing in draw_all([measured(64), measured(128)], []))


def test_a_heat_map_is_one_small_picture_with_a_pixel_for_each_value() -> None:
    from matplotlib.image import imread

    found = drawn("layers", [row(4096, latents=4000)])
    text = svg(found, inline=True)
    pictures = [base64.b64decode(one) for one in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    sizes = [imread(io.BytesIO(one)).shape[:2] for one in pictures]
    assert (len(LAYERS), 128) in sizes, "the other is the scale of colours"
    assert len(text) < 60_000
    assert "Of more than 128 a column is the mean of neighbours" in found.caption
    assert found.caption.endswith("On 16,380 tokens of a.txt.")
    axes = found.figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2", "5"]
    assert axes.get_xlim() == (0, 4000)


def test_of_each_size_and_k_one_seed_is_drawn_and_told() -> None:
    rows = [row(n, k, seed=seed) for n in (64, 256) for k in (4, 8) for seed in (0, 1)]
    found = drawn("layers", rows)
    assert found.jobs == tuple(one.job_id for one in rows if one.seed == 0)
    assert found.sampled == "4 of 8 SAEs shown"
    titles = [axes.get_title(loc="left") for axes in found.figure.axes[:4]]
    assert titles == ["n = 64, k = 4", "n = 64, k = 8", "n = 256, k = 4", "n = 256, k = 8"]
    many = [row(2**e, k) for e in range(4, 10) for k in (2, 4)]
    largest = drawn("layers", many)
    assert len(largest.jobs) == layer_plots.MOST_MAPS
    assert largest.sampled == "9 of 12 SAEs shown"


def test_the_prompt_and_the_histogram_say_what_they_are_of() -> None:
    assert "On the prompt “Mary gave”." in drawn("layers-prompt", [row()]).caption
    histogram = drawn("layers-mean", [row()])
    assert histogram.caption.endswith("On 16,380 tokens of a.txt.")
    (hint,) = histogram.hints.values()
    assert hint.endswith(": 100 latents")


def test_the_spread_is_drawn_against_what_the_sweep_varies() -> None:
    rows = [row(n, 8) for n in (64, 256, 1024)]
    found = drawn("layers-n", rows)
    assert found.jobs == tuple(one.job_id for one in rows)
    assert len(found.figure.axes) == len(layer_plots.SCORES)
    assert found.caption.endswith("On 16,380 tokens of a.txt.")
    assert draw("layers-k", rows, []) is None
    by_k = drawn("layers-k", [row(n, k) for n in (128, 2048) for k in (4, 8)])
    assert by_k.figure.axes[0].get_xlabel() == "k"
    assert [text.get_text() for text in by_k.figure.legends[0].get_texts()] == ["n = 128", "n = 2,048"]


def test_activations_are_drawn_once_for_each_place() -> None:
    rows = [row(64), row(256)]
    found = drawn("layers-activations", rows)
    assert found.jobs == (rows[0].job_id,)
    norms, centred, raw = found.figure.axes
    assert [list(axes.get_xticks()) for axes in (norms, centred, raw)] == [LAYERS] * 3
    hints = [hint for hint in found.hints.values() if hint.startswith("layer 2 and 5")]
    assert len(hints) == 2
    assert any("0.800 [0.700, 0.900]" in hint for hint in hints)
