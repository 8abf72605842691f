"""Verdicts on curves of known answer: plateau, divergence, learning."""

import math
import random
import subprocess
import sys

import pytest

from orchestrator.curves.convergence import gain, has_converged, has_diverged, learns

GRID = [int(8192 * 2 ** (i / 4)) for i in range(45)]
Curve = list[tuple[int, float]]


def _falling(per_doubling: float, noise: float = 0.0, seed: int = 0) -> Curve:
    draw = random.Random(seed)
    return [(t, (1 - per_doubling) ** math.log2(t / GRID[0]) * (1 + noise * draw.gauss(0, 1))) for t in GRID]


def _converges(curve: Curve, epsilon: float) -> bool:
    return any(has_converged(curve[:end], epsilon=epsilon) for end in range(len(curve) + 1))


def test_a_flat_curve_has_converged_once_three_evaluations_have_enough_points() -> None:
    flat: Curve = [(t, 0.5) for t in GRID]
    assert not has_converged(flat[:8], epsilon=0.01)  # the first of the last three has six points
    assert has_converged(flat[:9], epsilon=0.01)
    assert not has_converged([], epsilon=0.01)


def test_the_gain_is_that_per_doubling() -> None:
    found = gain(_falling(0.01))
    assert found is not None
    assert found.value == pytest.approx(-math.log(0.99), rel=1e-3)
    assert found.doubt < 1e-4
    assert has_converged(_falling(0.01), epsilon=0.0103)
    assert not has_converged(_falling(0.01), epsilon=0.0099)


def test_the_doubt_holds_the_error_as_often_as_it_says() -> None:
    found = [gain(_falling(0.01, 0.001, seed)) for seed in range(400)]
    covered = [one is not None and -math.log(0.99) < one.value + one.doubt for one in found]
    assert 0.91 < sum(covered) / len(covered) < 0.985


def test_noise_does_not_end_a_curve_that_falls() -> None:
    """The rule once fired on the first three low estimates: 0.6% per doubling "converged" at epsilon 0.5%."""
    ended = sum(_converges(_falling(0.006, 0.002, seed), 0.005) for seed in range(100))
    assert ended <= 5


def test_noise_does_not_keep_a_curve_that_is_flat() -> None:
    ended = sum(_converges(_falling(0.0, 0.001, seed), 0.005) for seed in range(50))
    assert ended == 50


def test_the_error_of_the_held_out_set_adds_to_the_doubt() -> None:
    flat: Curve = [(t, 0.5) for t in GRID]
    assert has_converged(flat, epsilon=0.005, sampling_error=0.002)
    assert not has_converged(flat, epsilon=0.005, sampling_error=0.003)


def test_plateau_needs_three_in_a_row() -> None:
    curve: Curve = [(t, 0.5) for t in GRID]
    for back in (1, 2, 3):
        dented = list(curve)
        dented[-back] = (dented[-back][0], 0.4)
        assert not has_converged(dented, epsilon=0.01)


def test_a_loss_that_is_not_finite_is_no_plateau() -> None:
    assert not has_converged([*((t, 0.5) for t in GRID), (GRID[-1] + 1, math.nan)], epsilon=0.01)


def test_a_rising_curve_has_not_converged() -> None:
    assert not has_converged(_falling(-0.05), epsilon=0.04)


def test_too_few_points_give_no_gain() -> None:
    assert gain([]) is None
    assert gain(_falling(0.01)[:6]) is None
    assert gain([(1000 + t, 0.5) for t in range(20)]) is None  # less than a doubling


def test_divergence() -> None:
    assert not has_diverged([], max_tokens=1000)
    assert has_diverged([(1, 0.5), (2, math.nan)], max_tokens=1000)
    assert has_diverged([(1, math.inf)], max_tokens=1000)
    assert not has_diverged([(1, 0.5), (5, 1.6)], max_tokens=1000)  # still within 1% of the budget
    assert has_diverged([(1, 0.5), (50, 1.6)], max_tokens=1000)
    assert not has_diverged([(1, 0.5), (50, 1.4)], max_tokens=1000)


def test_above_the_untrained_loss_is_a_divergence_too() -> None:
    """A rate of 100 once ended as `max_tokens` at an fvu of two million: high from the first point, it never rose."""
    high: Curve = [(t, 2e6) for t in GRID]
    budget = GRID[-1] + 1
    assert not has_diverged(high, max_tokens=budget)
    assert has_diverged(high[:30], max_tokens=budget, reference=0.36)
    assert not has_diverged(high[:6], max_tokens=budget, reference=0.36), "a first doubling may overshoot"
    back = [*high[:6], *((t, 0.3) for t in GRID[6:])]
    assert not any(has_diverged(back[:end], max_tokens=100 * budget, reference=0.36) for end in range(len(back) + 1))
    noisy: Curve = [(t, 0.361) for t in GRID]
    assert not has_diverged(noisy, max_tokens=budget, reference=0.36)
    assert has_diverged(high[:3], max_tokens=high[2][0], reference=0.36), "the end of the budget is judged alone"


@pytest.mark.parametrize(
    ("fvu", "reference", "expected"),
    [(1.130, 1.144, False), (0.95, 1.144, False), (0.85, 1.144, True), (0.34, 0.36, False), (0.3, 0.36, True),
     (0.95, None, False), (0.3, None, True), (math.nan, 1.0, False)],
)  # fmt: skip
def test_what_has_learned_is_well_below_what_it_began_with(fvu: float, reference: float | None, expected: bool) -> None:
    assert learns([(100, 1.0), (1000, fvu)], reference=reference) is expected


def test_importing_the_module_loads_no_numerics() -> None:
    code = "import sys, orchestrator.curves.convergence; assert not {'numpy', 'scipy', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
