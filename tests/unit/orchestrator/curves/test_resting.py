"""Only points of one weight of the penalty say whether a job has converged or diverged."""

import math

import pytest

from orchestrator.curves.point import Point, point_of
from orchestrator.curves.resting import resting_points


def curve(*weighed: tuple[float, float]) -> list[Point]:
    """Return points of (fvu, weight of the penalty)."""
    rest = dict.fromkeys(Point._fields[2:12], 0.0)
    told = enumerate(weighed, 1)
    return [point_of({"tokens_seen": i, "fvu": fvu, "sparsity_coef": coef, **rest}) for i, (fvu, coef) in told]


def test_a_weight_that_the_config_gives_always_rests() -> None:
    assert resting_points(curve((0.5, math.nan), (0.4, math.nan))) == [(1, 0.5), (2, 0.4)]
    assert resting_points([]) == []


@pytest.mark.parametrize(
    ("weights", "kept"),
    [
        ((0.1, 0.1, 0.1), [1, 2, 3]),
        ((0.1, 0.2, 0.21), [2, 3]),
        ((0.2, 0.1, 0.2), [3]),
        ((0.2, 0.205, 0.195), [1, 2, 3]),
    ],
)
def test_what_was_led_elsewhere_since_does_not_count(weights: tuple[float, ...], kept: list[int]) -> None:
    assert [tokens for tokens, _ in resting_points(curve(*((0.3, weight) for weight in weights)))] == kept


def test_an_fvu_that_is_not_finite_stays() -> None:
    ((tokens, fvu),) = resting_points(curve((0.3, 0.2), (math.nan, 0.1)))
    assert tokens == 2
    assert math.isnan(fvu)
