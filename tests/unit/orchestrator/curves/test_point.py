"""A stored point of a curve: what is null is not a number, and layers come last."""

import math

from orchestrator.curves.point import LayerPoint, Point, stored_point
from orchestrator.results.job_history import measured_points

NUMBERS = [float(at) for at in range(1, len(Point._fields))]


def test_null_is_not_a_number_and_layers_are_points() -> None:
    stored = stored_point([*NUMBERS[:2], None, *NUMBERS[3:], [[3, 0.5, 8.0, None]]])
    assert math.isnan(stored.fvu_raw)
    assert stored._replace(fvu_raw=3.0) == Point._make([*NUMBERS, (LayerPoint(3, 0.5, 8.0, None),)])
    assert stored_point([*NUMBERS, None]).by_layer is None


def test_before_the_window_the_dead_share_alone_is_no_number() -> None:
    layers = (LayerPoint(3, 0.5, 8.0, 0.0),)
    point = Point._make([*NUMBERS, layers])._replace(dead_share=0.0)
    (found,) = measured_points([point], window=100)
    assert math.isnan(found.dead_share)
    assert found._replace(dead_share=0.0) == point._replace(by_layer=(LayerPoint(3, 0.5, 8.0, None),))
    assert measured_points([point], window=0) == [point]
