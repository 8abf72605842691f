"""When a curve will meet the plateau rule: told early, and never beyond the budget."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.curves.convergence import has_converged
from orchestrator.curves.expected_stop import Points, stop_tokens
from orchestrator.curves.point import evaluation_grid
from orchestrator.curves.tail import LEAST_POINTS

FIRST, BATCH, BUDGET = 8192, 256, 2**24
SIZES = {"first_point_tokens": FIRST, "batch_tokens": BATCH}
GRID = evaluation_grid(first_point_tokens=FIRST, batch_tokens=BATCH, max_tokens=BUDGET)


def _curve(b: float, *, noise: float = 0.0, seed: int = 0, l_inf: float = 0.3) -> Points:
    draw = random.Random(seed)
    return tuple((t, (l_inf + 0.5 * (t / FIRST) ** -b) * (1 + noise * draw.gauss(0, 1))) for t in GRID)


def _stops(curve: Points, epsilon: float) -> int:
    return next((curve[i][0] for i in range(len(curve)) if has_converged(curve[: i + 1], epsilon=epsilon)), BUDGET)


def _told(curve: Points, epsilon: float, budget: int = BUDGET) -> int | None:
    return stop_tokens(curve, epsilon=epsilon, max_tokens=budget, **SIZES)


@pytest.mark.parametrize("b", [0.4, 0.7, 1.1])
@pytest.mark.parametrize("known", [9, 14, 20])
def test_a_curve_without_noise_is_foretold(b: float, known: int) -> None:
    curve = _curve(b)
    told = _told(curve[:known], 0.01)
    assert told is not None
    at = GRID.index(_stops(curve, 0.01))
    assert abs(GRID.index(told) - at) <= 1, "to one point of the grid"


def test_a_noisy_curve_is_foretold_within_a_doubling() -> None:
    for seed in range(10):
        curve = _curve(0.7, noise=0.001, seed=seed)
        truth = _stops(curve, 0.02)
        told = _told(curve[: GRID.index(truth) - 3], 0.02)
        assert told is not None
        assert 0.5 <= told / truth <= 2


def test_where_the_rule_is_met_already_the_end_is_now() -> None:
    curve = _curve(0.7)
    at = GRID.index(_stops(curve, 0.02))
    assert _told(curve[: at + 1], 0.02) == GRID[at]


@pytest.mark.parametrize("curve", [(), _curve(0.7)[: LEAST_POINTS - 1], (*_curve(0.7)[:8], (GRID[8], math.nan))])
def test_what_says_nothing(curve: Points) -> None:
    assert _told(curve, 0.01) is None


def test_a_pure_power_law_never_settles() -> None:
    assert _told(_curve(0.5, l_inf=0.0)[:12], 0.01) == BUDGET


losses = st.floats(1e-6, 10.0)


@settings(deadline=None)
@given(st.lists(losses, min_size=LEAST_POINTS, max_size=40), st.floats(1e-4, 0.3), st.integers(FIRST, BUDGET))
def test_it_lies_ahead_and_within_the_budget(values: list[float], epsilon: float, budget: int) -> None:
    curve = tuple((t, value) for t, value in zip(GRID, values, strict=False) if t <= budget)
    told = _told(curve, epsilon, budget)
    if told is not None:
        assert min(curve[-1][0], budget) <= told <= budget


@settings(deadline=None)
@given(st.lists(losses, min_size=LEAST_POINTS, max_size=40), st.floats(1e-4, 0.3), st.floats(1.0, 3.0))
def test_a_looser_rule_is_never_met_later(values: list[float], epsilon: float, looser: float) -> None:
    curve = tuple(zip(GRID, values, strict=False))
    sooner, later = _told(curve, epsilon * looser), _told(curve, epsilon)
    assert sooner is not None
    assert later is not None
    assert sooner <= later
    assert later <= (_told(curve, epsilon, BUDGET * 4) or 0), "a larger budget never ends a job earlier"


@pytest.mark.parametrize(("level", "ends"), [(1.2, BUDGET), (0.95, BUDGET), (0.5, GRID[20])])
def test_a_flat_curve_of_a_job_that_does_not_learn_goes_on_to_the_budget(level: float, ends: int) -> None:
    assert _told(tuple((tokens, level) for tokens in GRID[:21]), 0.01) == ends
