"""Verdicts on curves of known answer."""

import math
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.curves.convergence import EPSILONS, Tail, has_converged, has_diverged, tail_fit, tokens_to_convergence

GRID = [int(8192 * 2 ** (i / 4)) for i in range(37)]
Curve = list[tuple[int, float]]


def _curve(l_inf: float, a: float, b: float, noise: float = 0.0, seed: int = 0) -> Curve:
    draw = random.Random(seed)
    return [(t, (l_inf + a * (t / GRID[0]) ** -b) * (1 + noise * draw.gauss(0, 1))) for t in GRID]


def test_a_flat_curve_has_converged_once_half_of_three_points_is_known() -> None:
    flat: Curve = [(t, 0.5) for t in GRID]
    assert not has_converged(flat[:6], epsilon=0.01)  # the first of the last three has no half yet
    assert has_converged(flat[:7], epsilon=0.01)
    assert not has_converged([], epsilon=0.01)


def test_plateau_is_judged_by_the_fall_per_doubling() -> None:
    falling: Curve = [(t, 0.99 ** math.log2(t)) for t in GRID]  # 1% per doubling
    assert has_converged(falling, epsilon=0.0101)
    assert not has_converged(falling, epsilon=0.0099)


def test_plateau_needs_three_in_a_row() -> None:
    curve: Curve = [(t, 0.5) for t in GRID]
    for back in (1, 2, 3):
        dented = list(curve)
        dented[-back] = (dented[-back][0], 0.4)
        assert not has_converged(dented, epsilon=0.01)


def test_a_loss_that_is_not_finite_is_no_plateau() -> None:
    assert not has_converged([*((t, 0.5) for t in GRID), (GRID[-1] + 1, math.nan)], epsilon=0.01)


def test_half_the_tokens_is_interpolated_in_log_tokens() -> None:
    # Linear in log tokens between 100 and 400: at 200, half of 400, the loss is 0.9; the fall is 1/9 of it.
    points: Curve = [(100, 1.0), (400, 0.8), (400, 0.8), (400, 0.8)]
    assert has_converged(points, epsilon=0.1 / 0.9 + 1e-9)
    assert not has_converged(points, epsilon=0.1 / 0.9 - 1e-9)


def test_divergence() -> None:
    assert not has_diverged([], max_tokens=1000)
    assert has_diverged([(1, 0.5), (2, math.nan)], max_tokens=1000)
    assert has_diverged([(1, math.inf)], max_tokens=1000)
    assert not has_diverged([(1, 0.5), (5, 1.6)], max_tokens=1000)  # still within 1% of the budget
    assert has_diverged([(1, 0.5), (50, 1.6)], max_tokens=1000)
    assert not has_diverged([(1, 0.5), (50, 1.4)], max_tokens=1000)


@pytest.mark.parametrize(("l_inf", "a", "b"), [(0.1, 0.3, 0.5), (0.3, 0.1, 1.0), (0.02, 0.9, 0.25)])
def test_fit_of_an_exact_curve_is_exact(l_inf: float, a: float, b: float) -> None:
    tail = tail_fit(_curve(l_inf, a, b))
    assert tail is not None
    assert tail.l_inf == pytest.approx(l_inf, rel=1e-3)
    assert tail.b == pytest.approx(b, rel=1e-2)
    assert tail.a == pytest.approx(a * GRID[0] ** b, rel=0.1)
    assert tail.l_inf_se < 1e-3 * l_inf


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    tails = [tail_fit(_curve(0.1, 0.3, 0.6, noise=1e-3, seed=seed)) for seed in range(60)]
    errors = [abs(t.l_inf - 0.1) / t.l_inf_se for t in tails if t is not None]
    assert len(errors) == 60
    assert sum(error < 2 for error in errors) >= 45
    assert sum(error < 1 for error in errors) <= 57


def test_an_outlier_does_not_move_the_fit() -> None:
    curve = _curve(0.1, 0.3, 0.6, noise=2e-4)
    clean = tail_fit(curve)
    curve[-4] = (curve[-4][0], curve[-4][1] * 1.2)
    dirty = tail_fit(curve)
    assert clean is not None
    assert dirty is not None
    assert dirty.l_inf == pytest.approx(clean.l_inf, rel=0.02)


def test_flat_and_rising_tails_have_a_limit_too() -> None:
    flat = tail_fit([(t, 0.3) for t in GRID])
    assert flat is not None
    assert flat.l_inf == pytest.approx(0.3)
    rising = tail_fit([(t, 0.3 + 0.01 * math.log2(t / GRID[0])) for t in GRID])
    assert rising is not None
    assert 0.3 < rising.l_inf < 0.4


def test_too_few_usable_points_give_no_fit() -> None:
    assert tail_fit([]) is None
    assert tail_fit(_curve(0.1, 0.3, 0.5)[:4]) is None
    assert tail_fit([(t, math.nan) for t in GRID]) is None
    assert tail_fit([(1, 0.5), (2, 0.4), (3, 0.3), (4, 0.2), (10**6, 0.1)]) is None  # four lie outside the tail


def test_count_is_where_the_curve_crosses() -> None:
    tail = Tail(0.1, 0.0, 0.3, 0.5)
    points: Curve = [(100, 0.2), (1000, 0.11), (10_000, 0.1)]
    # (1 + 0.05) · 0.1 = 0.105 lies halfway, in loss, between the last two: the middle in log tokens.
    found = tokens_to_convergence(points, epsilon=0.05, tail=tail)
    assert found.tokens == pytest.approx(math.sqrt(1000 * 10_000))
    assert found.lower_bound is None
    assert tokens_to_convergence(points, epsilon=2.0, tail=tail).tokens == 100


def test_count_of_a_known_law() -> None:
    curve = _curve(0.1, 0.3, 1.5)
    for epsilon in EPSILONS:
        found = tokens_to_convergence(curve, epsilon=epsilon, tail=tail_fit(curve))
        assert found.tokens == pytest.approx(GRID[0] * (0.3 / (0.1 * epsilon)) ** (1 / 1.5), rel=0.02)


def test_censored_counts_have_a_lower_bound() -> None:
    curve = _curve(0.1, 0.3, 0.2)
    found = tokens_to_convergence(curve, epsilon=0.01, tail=tail_fit(curve))
    assert (found.tokens, found.lower_bound) == (None, GRID[-1])
    assert tokens_to_convergence(curve[:3], epsilon=0.01, tail=None).lower_bound == GRID[2]
    assert tokens_to_convergence([], epsilon=0.01, tail=None) == (0.01, None, None)


@given(st.lists(st.floats(0.01, 10) | st.just(math.nan), max_size=20), st.sampled_from(EPSILONS))
def test_any_curve_gets_a_count_and_a_looser_epsilon_no_later_one(losses: list[float], epsilon: float) -> None:
    points = list(zip(GRID, losses, strict=False))
    tail = tail_fit(points)
    tight = tokens_to_convergence(points, epsilon=epsilon, tail=tail)
    loose = tokens_to_convergence(points, epsilon=2 * epsilon, tail=tail)
    assert not (tight.tokens is not None and tight.lower_bound is not None)
    if tight.tokens is not None:
        assert loose.tokens is not None
        assert loose.tokens <= tight.tokens * (1 + 1e-12)
        assert points[0][0] * (1 - 1e-12) <= tight.tokens <= points[-1][0] * (1 + 1e-12)


def test_importing_the_module_loads_no_numerics() -> None:
    code = "import sys, orchestrator.curves.convergence; assert not {'numpy', 'scipy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_rising_curve_has_not_converged() -> None:
    rising = [(2**i, loss) for i, loss in enumerate((1.0, 1.0, 1.0, 1.1, 1.2, 1.4, 1.7, 2.0))]
    assert not has_converged(rising, epsilon=0.05)


def test_a_short_steep_curve_is_no_constant() -> None:
    curve = [(round(1000 * 2 ** (i / 4)), 0.1 + 0.8 * 2 ** (-0.2 * i)) for i in range(8)]
    assert tail_fit(curve[:5]) is None  # five points cannot tell a power law from a constant
    fitted = tail_fit(curve)
    assert fitted is not None
    assert fitted.b > 0
    assert fitted.l_inf < curve[-1][1]
