"""The table of SAEs that read several layers: what the last point of each found at every one of them."""

import math
from collections.abc import Callable, Sequence

from orchestrator.curves.point import LayerPoint, Point
from orchestrator.formatting import NONE, digits, ratio, share
from orchestrator.report.html import Head, Html, element, grid, job_links, number
from orchestrator.scaling.types import JobMeasurement

_Cell = Callable[[LayerPoint | Point], str]


def layer_tables(listed: Sequence[JobMeasurement]) -> list[Html]:
    """Return the table under its heading; nothing where every job reads one layer."""
    last = {row.job_id: row.curve[-1] for row in listed if row.curve and row.curve[-1].by_layer}
    layers = sorted({one.layer for point in last.values() for one in point.by_layer or ()})
    measures: list[tuple[str, _Cell]] = [
        ("fvu", lambda one: _number(ratio(one.fvu), one.fvu)),
        ("L0", lambda one: _number(digits(one.l0), one.l0)),
        ("dead", lambda one: _number(share(one.dead_share), one.dead_share)),
    ]
    heads = [
        Head("job"), Head("", right=False),
        Head("all", help="fvu and L0: the mean over layers; dead: latents that fire at none of them"),
        *(Head(f"layer {layer}") for layer in layers),
    ]  # fmt: skip
    rows: list[tuple[str | None, list[str]]] = []
    for job_id, point in last.items():
        found = {one.layer: one for one in point.by_layer or ()}
        for name, cell in measures:
            cells = [cell(found[layer]) if layer in found else NONE for layer in layers]
            rows.append((None, [job_links([job_id]), name, cell(point), *cells]))
    return [element("h3", "At the end of training"), grid(heads, rows)] if rows else []


def _number(text: str, value: float | None) -> str:
    return text if value is None or math.isnan(value) else number(text, value)
