"""Huber regression, many fits at once: against finite differences, scipy, and itself one at a time."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from orchestrator.scaling.fit.estimate import data_of, estimate, freedom, spread, starts
from orchestrator.scaling.fit.huber import Data, _Fitted, _places, _state, minimise, residuals, slopes
from orchestrator.scaling.fit.losses import SinglePoints, SortedPoints
from orchestrator.scaling.fit.sample import Observation, Sample
from orchestrator.scaling.forms import Design, Form, coefficients, log_values, parameters
from orchestrator.scaling.laws.registry import LAWS
from tests.job_measurements import K_OF_G1, N_OF_G1, surface

EVERY_FORM = [(law.key, form) for law in LAWS.values() for form in law.forms]


def _sample(noise: float, *, n: int = 12, seed: int = 0, e: float = 0.199) -> Sample:
    random = np.random.default_rng(seed)
    sizes = np.geomspace(64, 2**20, n).round()
    values = (np.exp(0.4 - 0.163 * np.log(sizes)) + e) * np.exp(noise * random.normal(size=n))
    return Sample(
        "",
        "",
        tuple(
            Observation((i,), x, 1.0, 8, "m", v, (x, 1.0)) for i, (x, v) in enumerate(zip(sizes, values, strict=True))
        ),
    )


def _surface() -> Sample:
    return Sample(
        "", "", tuple(Observation((0,), n, k, k, "m", surface(n, k), (n, k)) for n in N_OF_G1 for k in K_OF_G1)
    )


@pytest.mark.parametrize(("law", "form"), EVERY_FORM, ids=lambda one: one if isinstance(one, str) else one.name)
def test_gradient_and_hessian_are_those_of_the_objective(law: str, form: Form) -> None:
    random = np.random.default_rng(1)
    sample = _surface()
    theta = starts(form, sample)[-1] + 0.01 * random.normal(size=form.size)
    whole = data_of(form, sample)
    observed = whole.observed[None] + 0.02 * random.normal(size=whole.observed.shape)
    data = _Fitted(whole.points, SinglePoints(observed, whole.censored[None], 1e9), observed.shape[1])

    def objective(at: np.ndarray) -> float:
        return float(_state(data, at[None]).objective[0])

    def gradient(at: np.ndarray) -> np.ndarray:
        return np.asarray(_state(data, at[None]).gradient[0])

    steps = 1e-5 * np.eye(form.size)
    state = _state(data, theta[None])
    numeric = [(objective(theta + step) - objective(theta - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(state.gradient[0], numeric, rtol=1e-5, atol=1e-7)
    bent = [(gradient(theta + step) - gradient(theta - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(state.hessian[0], bent, rtol=1e-4, atol=1e-5)


def test_the_minimum_is_scipys() -> None:
    sample, form = _sample(0.02), LAWS["ln"].form("+e")
    found = estimate(form, sample)
    data = data_of(form, sample, delta=found.delta)

    def misfit(theta: np.ndarray) -> np.ndarray:
        return np.asarray(residuals(data, theta[None])[0])

    there = least_squares(
        misfit, found.theta + 0.01, loss="huber", f_scale=found.delta, xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    mine = float(minimise(data, found.theta[None]).objective[0])
    assert found.converged
    assert mine <= there.cost * (1 + 1e-9)
    np.testing.assert_allclose(found.theta, there.x, rtol=1e-4)


def test_many_fits_at_once_are_each_its_own() -> None:
    sample, form = _sample(0.02), LAWS["ln"].form("+e")
    data = data_of(form, sample, delta=0.01)
    random = np.random.default_rng(0)
    observed = data.observed + 0.02 * random.normal(size=(40, len(data.observed)))
    start = np.repeat(starts(form, sample)[3][None], 40, axis=0)
    together = minimise(data._replace(observed=observed), start)
    for at in (0, 7, 39):
        alone = minimise(data._replace(observed=observed[at : at + 1]), start[:1])
        np.testing.assert_allclose(together.theta[at], alone.theta[0], rtol=1e-6, atol=1e-9)
    assert together.converged.all()


def test_a_bound_that_is_kept_costs_nothing() -> None:
    form = LAWS["tn"].form("pure")
    sample = _sample(0.0, e=0.0)
    data = data_of(form, sample)
    theta = estimate(form, sample).theta[None]
    low, high = data.observed - 1.0, data.observed + 1.0
    every = np.ones(len(low), dtype=bool)
    assert (residuals(data._replace(observed=low, censored=every), theta) == 0).all()
    assert (residuals(data._replace(observed=high, censored=every), theta) > 0.9).all()
    free = _Fitted(data.points, SinglePoints(low[None], every[None], np.inf), len(low))
    assert _state(free, theta).objective[0] == 0


def test_what_is_held_stays() -> None:
    sample, form = _surface(), LAWS["lnk"].form("+e(k)")
    theta = estimate(form, sample).theta
    middle = float(np.mean(np.log(sample.z)))
    start = theta + np.array([0, 0, 0, 0, 0.1, 0])
    moved = minimise(data_of(form, sample), start[None], held=True).theta[0]
    assert moved[4] + moved[5] * middle == pytest.approx(start[4] + start[5] * middle, abs=1e-9)
    assert not np.allclose(moved[:4], theta[:4])


@pytest.mark.parametrize(("law", "form"), EVERY_FORM, ids=lambda one: one if isinstance(one, str) else one.name)
def test_coefficients_and_parameters_are_inverse(law: str, form: Form) -> None:
    theta = np.linspace(-1.0, 0.5, form.size)
    np.testing.assert_allclose(parameters(form, coefficients(form, theta)), theta)


def test_slopes_are_derivatives() -> None:
    sample, form = _surface(), LAWS["lnk"].form("+e(k)")
    theta = estimate(form, sample).theta
    points = data_of(form, sample).points
    for at, step in enumerate(1e-6 * np.eye(form.size)):
        numeric = (log_values((theta + step)[None], points)[0] - log_values((theta - step)[None], points)[0])[0] / 2e-6
        np.testing.assert_allclose(slopes(theta, points)[:, at], numeric, rtol=1e-5, atol=1e-8)


def test_a_floor_of_nothing_gives_a_law_of_power() -> None:
    form = LAWS["ln"].form("+e")
    theta = parameters(form, np.array([0.4, -0.2, 0.0]))
    points = data_of(form, _sample(0.0)).points
    np.testing.assert_allclose(log_values(theta[None], points)[0][0], 0.4 - 0.2 * np.log(_sample(0.0).x))


def test_the_spread_respects_degrees_of_freedom() -> None:
    random = np.random.default_rng(0)
    found = [spread(random.normal(size=1001) * 0.02, n_places=1001, n_coefficients=1) for _ in range(20)]
    assert np.mean(found) == pytest.approx(0.02, rel=0.02)
    assert spread(np.array([0.0, 0.0, 0.0, 1, 1, 1]), n_places=6, n_coefficients=3) == pytest.approx(1.4826), (
        "three of six can be met exactly, and say nothing"
    )
    assert spread(np.repeat([0.0, 0.0, 0.0, 1, 1, 1], 5), n_places=6, n_coefficients=3) == pytest.approx(1.4826)
    assert spread(np.array([0.0, 1.0]), n_places=2, n_coefficients=3) == pytest.approx(1.4826)
    assert freedom(LAWS["ln"].form("+e"), _sample(0.0, n=6)) == 3


@pytest.mark.parametrize("delta", [0.03, np.inf])
@pytest.mark.parametrize("censored", [False, True])
def test_seeds_of_one_place_are_worked_out_together_and_count_each(delta: float, *, censored: bool) -> None:
    """One to five points of each place, in any order: their sums are those of all of them one by one."""
    random = np.random.default_rng(3)
    form, sample = LAWS["lnk"].forms[-1], _surface()
    data = data_of(form, sample)
    several = np.repeat(np.arange(len(data.observed)), random.permutation(len(data.observed)) % 5 + 1)
    random.shuffle(several)
    points = Design(data.points.power[several], data.points.floor[several])
    observed = data.observed[several] + 0.05 * random.normal(size=(5, len(several)))
    bounds = random.random(observed.shape) < 0.2 if censored else np.zeros(observed.shape, dtype=bool)
    if censored:
        observed[1, bounds[1]] = -np.inf  # bounds that count for nothing
    order, counts = _places(points)
    assert counts is not None
    assert sorted(set(counts.tolist())) == [1, 2, 3, 4, 5]
    assert _places(data.points) == (slice(None), None)
    first = np.cumsum(counts) - counts
    theta = starts(form, sample)[-1][None] + 0.01 * random.normal(size=(5, form.size))
    values = log_values(theta, points)[0][:, order]
    alone = SinglePoints(observed[:, order], bounds[:, order], delta).losses(values)
    sums = SortedPoints.of_places(observed[:, order], bounds[:, order], counts, n_fits=5, delta=delta)
    for fits in (np.arange(5), np.array([3, 1])):
        found = sums.of(fits).losses(values[fits][:, first])
        np.testing.assert_allclose(found.objective, alone.objective[fits], rtol=1e-12)
        np.testing.assert_allclose(
            found.pulls, np.add.reduceat(alone.pulls, first, axis=1)[fits], rtol=1e-9, atol=1e-12
        )
        bends = np.add.reduceat(alone.bends, first, axis=1)[fits]
        inside = np.add.reduceat(np.floor(alone.bends), first, axis=1)[fits]
        assert (found.bends <= bends + 1e-9).all(), "points beyond δ bend as if all were as far off as their mean"
        assert (found.bends >= inside - 1e-9).all()


@pytest.mark.parametrize("censored", [False, True])
def test_the_minimum_over_seeds_of_a_place_is_that_of_all_points_one_by_one(
    monkeypatch: pytest.MonkeyPatch, *, censored: bool
) -> None:
    random = np.random.default_rng(4)
    form, sample = LAWS["lnk"].forms[-1], _surface()
    data = data_of(form, sample)
    several = np.repeat(np.arange(len(data.observed)), 4)
    points = Design(data.points.power[several], data.points.floor[several])
    observed = data.observed[several] + 0.02 * random.normal(size=(6, len(several)))
    bounds = random.random(len(several)) < 0.1 if censored else np.zeros(len(several), dtype=bool)
    given, theta = Data(points, observed, bounds, 0.03), np.repeat(starts(form, sample)[-1][None], 6, axis=0)
    together = minimise(given, theta)
    monkeypatch.setattr("orchestrator.scaling.fit.huber._places", lambda _: (slice(None), None))
    alone = minimise(given, theta)
    assert together.converged.all()
    assert alone.converged.all()
    np.testing.assert_allclose(together.objective, alone.objective, rtol=1e-11)
    np.testing.assert_allclose(together.theta, alone.theta, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("has_bounds", [False, True])
@pytest.mark.parametrize("delta", [0.02, np.inf])
def test_the_objective_is_that_of_the_plain_formula_to_the_bit(delta: float, *, has_bounds: bool) -> None:
    """Arrays are written over to save time: a fit's values are those of the formulas, written out."""
    form = next(form for law, form in EVERY_FORM if law == "ln" and form.floor)
    random = np.random.default_rng(2)
    data = data_of(form, _sample(0.05), delta=delta)
    observed = data.observed + 0.1 * random.normal(size=(7, len(data.observed)))
    censored = np.broadcast_to(has_bounds & (np.arange(observed.shape[1]) % 3 == 0), observed.shape)
    theta = starts(form, _sample(0.05))[-1] + 0.01 * random.normal(size=(7, form.size))
    given = observed.copy()
    state = _state(_Fitted(data.points, SinglePoints(observed, censored, delta), observed.shape[1]), theta)
    values, share = log_values(theta, data.points)
    left = np.where(censored, np.maximum(observed - values, 0.0), observed - values)
    clipped = np.clip(left, -delta, delta)
    np.testing.assert_array_equal(state.objective, np.sum(clipped * (left - 0.5 * clipped), axis=1))
    gradient = [clipped * (1 - share) @ data.points.power, clipped * share @ data.points.floor]
    np.testing.assert_array_equal(state.gradient, -np.concatenate(gradient, axis=1))
    np.testing.assert_array_equal(observed, given)
