"""The share of pretraining compute that a loss stands for: monotone, 1 where nothing was lost, and known answers."""

import numpy as np
import pytest

from orchestrator.scaling.compute_equivalent import Array, ComputeCurve, ComputeLaw

COMPUTE = np.logspace(0, 6, 13)


def law(compute: Array) -> Array:
    return np.asarray(1.7 + 3.0 * compute**-0.3)


def test_a_point_of_the_curve_has_its_own_compute() -> None:
    curve = ComputeCurve.of(COMPUTE, law(COMPUTE))
    clean = law(COMPUTE[-1:])
    for compute in COMPUTE:
        found = curve.share(law(np.array([compute])), clean=clean)
        assert found[0] == pytest.approx(compute / COMPUTE[-1], rel=1e-9)


@pytest.mark.parametrize("way", [ComputeCurve.of(COMPUTE, law(COMPUTE)), ComputeLaw(1.7, np.nan, 0.3)])
def test_the_share_falls_with_the_loss_and_is_one_where_nothing_was_lost(way: ComputeCurve | ComputeLaw) -> None:
    clean = np.full(50, 1.9)
    shares = way.share(np.linspace(1.9, 4.0, 50), clean=clean)
    assert shares[0] == 1
    assert (np.diff(shares) < 0).all()


def test_noisy_checkpoints_in_any_order_are_smoothed() -> None:
    rng = np.random.default_rng(0)
    noisy = law(COMPUTE) + 0.05 * rng.standard_normal(len(COMPUTE))
    order = rng.permutation(len(COMPUTE))
    curve = ComputeCurve.of(COMPUTE[order], noisy[order])
    assert (np.diff(curve.ce) < 0).all()
    assert (np.diff(curve.log_compute) > 0).all()
    shares = curve.share(np.linspace(1.8, 4.6, 100), clean=np.full(100, 1.8))
    assert (np.diff(shares) <= 0).all()


def test_beyond_its_ends_a_curve_says_that_it_does_not_reach() -> None:
    curve = ComputeCurve.of(COMPUTE, law(COMPUTE))
    beyond = np.array([9.0, 2.0, 0.1])
    assert curve.reaches(beyond).tolist() == [False, True, False]
    assert curve.share(beyond, clean=law(COMPUTE[-1:]))[0] == pytest.approx(1e-6)


@pytest.mark.parametrize(("e", "a", "alpha"), [(1.7, 3.0, 0.3), (2.0, 1.0, 1.0), (0.0, 4.0, 0.1)])
@pytest.mark.parametrize("unit", [1.0, 1e18])
def test_a_family_is_fitted(e: float, a: float, alpha: float, unit: float) -> None:
    found = ComputeLaw.fit(COMPUTE * unit, e + a * COMPUTE**-alpha)
    assert found.e == pytest.approx(e, abs=1e-3)
    assert found.alpha == pytest.approx(alpha, rel=1e-3)
    assert found.a == pytest.approx(a * unit**alpha, rel=1e-2)
    assert found.share(np.array([e + 2.0]), clean=np.array([e + 1.0]))[0] == pytest.approx(2 ** (-1 / alpha), rel=1e-2)


def test_a_clean_loss_below_the_floor_has_no_share() -> None:
    assert np.isnan(ComputeLaw(1.7, np.nan, 0.3).share(np.array([2.0]), clean=np.array([1.5])))[0]
