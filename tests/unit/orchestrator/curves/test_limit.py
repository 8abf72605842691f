"""L∞ and tokens to convergence of curves of known limit, with intervals that hold them."""

import math
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.curves.convergence import EPSILONS
from orchestrator.curves.limit import Tail, tail_fit, tokens_to_convergence

GRID = [int(8192 * 2 ** (i / 4)) for i in range(37)]
Curve = list[tuple[int, float]]


def _curve(l_inf: float, a: float, b: float, noise: float = 0.0, seed: int = 0) -> Curve:
    draw = random.Random(seed)
    return [(t, (l_inf + a * (t / GRID[0]) ** -b) * (1 + noise * draw.gauss(0, 1))) for t in GRID]


def _certain(points: Curve, l_inf: float) -> Tail:
    """Return a tail without doubt: its one path is the curve."""
    tokens, losses = np.array(points).T
    return Tail(l_inf, 0.0, 0.5, tokens, np.array([l_inf]), losses[None])


@pytest.mark.parametrize(("l_inf", "a", "b"), [(0.1, 0.3, 0.5), (0.3, 0.1, 1.0), (0.02, 0.9, 0.25)])
def test_fit_of_an_exact_curve_is_exact(l_inf: float, a: float, b: float) -> None:
    tail = tail_fit(_curve(l_inf, a, b))
    assert tail is not None
    assert tail.l_inf == pytest.approx(l_inf, rel=1e-4)
    assert tail.b == pytest.approx(b, rel=1e-3)
    assert tail.l_inf_se < 1e-4 * l_inf


@pytest.mark.parametrize(("b", "noise"), [(0.5, 0.0005), (0.5, 0.002), (1.0, 0.001)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(b: float, noise: float) -> None:
    """Two doublings alone held L∞ in 33% to 77% of curves, and gave 0.25 to 0.73 of T(1%)."""
    truth, limits, counts, ratios = GRID[0] * 20 ** (1 / b), 0, 0, []
    for seed in range(40):
        curve = _curve(1.0, 0.2, b, noise, seed)
        tail = tail_fit(curve)
        assert tail is not None
        limits += abs(tail.l_inf - 1.0) < 1.645 * tail.l_inf_se
        found = tokens_to_convergence(curve, epsilon=0.01, tail=tail)
        low, high = (found.low, found.high) if found.tokens else (found.lower_bound, math.inf)
        counts += (low or 0.0) < truth < (high or 0.0)
        ratios += [found.tokens / truth] if found.tokens else []
    assert limits >= 32
    assert counts >= 32
    if len(ratios) >= 20:  # few that are not censored are those that noise made early
        assert 0.8 < float(np.median(ratios)) < 1.25


def test_a_curve_that_is_no_power_law_at_first_gets_a_wider_interval() -> None:
    straight = [tail_fit(_curve(1.0, 0.2, 1.0, 0.001, seed)) for seed in range(10)]
    bent = []
    for seed in range(10):
        curve = [(t, loss + 0.5 * (t / GRID[0]) ** -2.5) for t, loss in _curve(1.0, 0.2, 1.0, 0.001, seed)]
        bent.append(tail_fit(curve))
    assert sum(one.l_inf_se for one in bent if one) > 1.5 * sum(one.l_inf_se for one in straight if one)
    assert sum(abs(one.l_inf - 1) < 1.645 * one.l_inf_se for one in bent if one) >= 6


def test_an_outlier_does_not_move_the_fit() -> None:
    curve = _curve(0.1, 0.3, 0.6, noise=2e-4)
    clean = tail_fit(curve)
    curve[-4] = (curve[-4][0], curve[-4][1] * 1.2)
    dirty = tail_fit(curve)
    assert clean is not None
    assert dirty is not None
    assert dirty.l_inf == pytest.approx(clean.l_inf, abs=2 * clean.l_inf_se)


def test_a_flat_curve_has_a_limit_and_a_rising_one_has_none() -> None:
    flat = tail_fit([(t, 0.3) for t in GRID])
    assert flat is not None
    assert flat.l_inf == pytest.approx(0.3)
    assert tail_fit([(t, 0.3 + 0.01 * math.log2(t / GRID[0])) for t in GRID]) is None


def test_too_few_usable_points_give_no_fit() -> None:
    assert tail_fit([]) is None
    assert tail_fit(_curve(0.1, 0.3, 0.5)[:6]) is None
    assert tail_fit([(t, math.nan) for t in GRID]) is None
    assert tail_fit([(1000 + t, 0.5) for t in range(20)]) is None  # less than a doubling


def test_the_same_curve_gives_the_same_fit() -> None:
    curve = _curve(0.1, 0.3, 0.6, noise=1e-3)
    first, second = tail_fit(curve), tail_fit(curve)
    assert first is not None
    assert second is not None
    assert (first.l_inf, first.l_inf_se) == (second.l_inf, second.l_inf_se)


def test_count_is_where_the_curve_crosses() -> None:
    points: Curve = [(100, 0.2), (1000, 0.11), (10_000, 0.1)]
    tail = _certain(points, 0.1)
    # (1 + 0.05) · 0.1 = 0.105 lies halfway, in loss, between the last two: the middle in log tokens.
    found = tokens_to_convergence(points, epsilon=0.05, tail=tail)
    assert found.tokens == pytest.approx(math.sqrt(1000 * 10_000))
    assert (found.lower_bound, found.low, found.high) == (None, found.tokens, found.tokens)
    assert tokens_to_convergence(points, epsilon=2.0, tail=tail).tokens == pytest.approx(100)


def test_a_wide_interval_is_censored_at_its_lower_end() -> None:
    points: Curve = [(100, 0.2), (1000, 0.11), (10_000, 0.1)]
    (path,) = _certain(points, 0.1).paths
    limits = np.array([0.095] * 10 + [0.1] * 80 + [0.109] * 10)
    tail = Tail(0.1, 0.005, 0.5, np.array([100.0, 1000.0, 10_000.0]), limits, np.tile(path, (100, 1)))
    found = tokens_to_convergence(points, epsilon=0.05, tail=tail)
    assert (found.tokens, found.low, found.high) == (None, None, None)
    assert 100 < (found.lower_bound or 0) < 1000


def test_count_of_a_known_law() -> None:
    curve = _curve(0.1, 0.3, 1.5)
    for epsilon in EPSILONS:
        found = tokens_to_convergence(curve, epsilon=epsilon, tail=tail_fit(curve))
        assert found.tokens == pytest.approx(GRID[0] * (0.3 / (0.1 * epsilon)) ** (1 / 1.5), rel=0.01)


def test_censored_counts_have_a_lower_bound() -> None:
    curve = _curve(0.1, 0.3, 0.2)
    found = tokens_to_convergence(curve, epsilon=0.01, tail=tail_fit(curve))
    assert (found.tokens, found.lower_bound) == (None, GRID[-1])
    assert tokens_to_convergence(curve[:3], epsilon=0.01, tail=None).lower_bound == GRID[2]
    assert tokens_to_convergence([], epsilon=0.01, tail=None) == (0.01, None, None, None, None)


@pytest.mark.parametrize("fall", [0.002, 0.004])
def test_a_slow_decay_without_end_is_censored(fall: float) -> None:
    """It is below epsilon, so it may converge; but within 1% of what? It once got a T in every case."""
    for seed in range(10):
        draw = random.Random(seed)
        curve = [(t, (1 - fall) ** math.log2(t / GRID[0]) * (1 + 0.001 * draw.gauss(0, 1))) for t in GRID]
        assert tokens_to_convergence(curve, epsilon=0.01, tail=tail_fit(curve)).tokens is None


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 10) | st.just(math.nan), max_size=20), st.sampled_from(EPSILONS))
def test_any_curve_gets_a_count_within_its_tokens(losses: list[float], epsilon: float) -> None:
    points = list(zip(GRID, losses, strict=False))
    found = tokens_to_convergence(points, epsilon=epsilon, tail=tail_fit(points))
    assert not (found.tokens is not None and found.lower_bound is not None)
    if found.tokens is not None and found.low is not None and found.high is not None:
        first, last = points[0][0] * (1 - 1e-9), points[-1][0] * (1 + 1e-9)
        assert first <= found.low <= found.tokens <= found.high <= last
        assert found.high <= 2 * found.low


def test_importing_the_module_loads_no_numerics() -> None:
    code = "import sys, orchestrator.curves.limit; assert not {'numpy', 'scipy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_points_that_determine_no_limit_have_none() -> None:
    """A hundred points within a doubling and one far away, without noise: its matrices are singular."""
    points = [(tokens, 1000 / tokens) for tokens in range(1, 101)] + [(2048, 1000 / 2048)]
    assert tail_fit(points) is None
    assert tokens_to_convergence(points, epsilon=0.01, tail=None).lower_bound == 2048
