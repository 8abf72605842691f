"""Forecasts from fits made by hand: values, intervals and what they may not say."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError, FitError
from orchestrator.estimates.flops import estimate
from orchestrator.formatting import Interval
from orchestrator.scaling.plan.forecast import ForecastInputs, extrapolation, forecast, over, stretch, times
from orchestrator.scaling.plan.throughput import device_of, speed, spread
from orchestrator.scaling.types import Fit, Residual, Score
from tests.made_fits import fit, measured, power_law

CONFIG = parse({"sae": {"n_latents": 256, "k": 8}, "training": {"batch_tokens": 1024}})
ROWS = tuple(
    measured(at + 1, [(2**20, 0.4)], n_latents=n, tokens_to_convergence={0.01: 2**19}, max_tokens=2**21)
    for at, n in enumerate((256, 512, 1024, 2048))
)


def length_fit(p: float = 0.6, a: float = 1000.0, noise: float = 0.05) -> Fit:
    """Return a T(N) at k = 8."""
    draws = [(a * math.exp(noise * z), p + noise / 10 * z) for z in (-2, -1, 0, 1, 2)]
    points = tuple(Residual((1,), n, 8, "gpt2", a * n**p, a * n**p, 0.0) for n in (256.0, 2048.0))
    return fit("tn", "pure", {"A": a, "p": p}, draws, points, group="k=8")


def inputs(*losses: Fit, lengths: tuple[Fit, ...] = ()) -> ForecastInputs:
    return ForecastInputs(ROWS, CONFIG, losses or (power_law(),), lengths, device="cpu")


def test_every_figure_of_one_size() -> None:
    (found,) = forecast(inputs(lengths=(length_fit(),)), [(4096, 8)])
    assert found.fvu.value == pytest.approx(math.exp(0.5 - 0.3 * math.log(4096)) + 0.1)
    assert found.extrapolation == 2.0
    count = 1000 * 4096**0.6
    assert found.tokens_to_convergence is not None
    assert found.tokens_to_convergence.value == pytest.approx(count)
    assert found.tokens is not None
    assert found.tokens.value == pytest.approx(2 * count), "the jobs were trained for twice their T(1%)"
    sae = CONFIG.sae.model_copy(update={"n_latents": 4096})
    training = CONFIG.training.model_copy(update={"max_tokens": math.ceil(found.tokens.value)})
    cost = estimate(CONFIG.model_copy(update={"sae": sae, "training": training}), 64)
    assert found.flops_dense is not None
    assert found.flops_dense.value == cost.flops_dense
    subject = 1e5 * found.tokens.value
    assert found.flops_executed is not None
    assert found.flops_executed.value == pytest.approx((cost.flops_executed or 0) + subject, rel=1e-6)
    assert found.seconds is not None
    assert found.seconds.value == pytest.approx(found.flops_executed.value / (1.1e6 * 1e5), rel=1e-9)
    assert found.speed is not None
    assert (found.speed.device, found.speed.n_latents, found.speed.jobs) == ("cpu", 2048, (4,))


def test_a_form_that_the_interval_does_not_allow_for_is_told() -> None:
    """One with a term more than the draws have; one with fewer is a special case of theirs."""

    def told(fit: Fit, *, rival: float) -> tuple[str, tuple[str, ...]]:
        scores = tuple(Score(form, 2, -40.0 if form == fit.form else rival, 0.01, None) for form in ("pure", "+e"))
        found = forecast(inputs(replace(fit, scores=scores)), [(4096, 8)])[0]
        return found.taken, found.rivals

    plain = replace(power_law(), form="pure", coefficients={"a": Interval(1, 1, 1), "b": Interval(-0.3, -0.3, -0.3)})
    narrow = replace(plain, draws=((1.0, -0.3), (1.1, -0.31)))
    wide = replace(plain, drawn_form="+e")
    assert told(narrow, rival=-35.0) == ("pure", ("+e",))
    assert told(narrow, rival=-30.0) == ("pure", ())
    assert told(wide, rival=-35.0) == ("+e", ())
    assert told(power_law(), rival=-35.0) == ("+e", ())


@settings(deadline=None)
@given(st.integers(8, 2**24), st.floats(0.001, 0.3), st.integers(0, 5))
def test_an_interval_holds_its_value(n_latents: int, noise: float, seed: int) -> None:
    made = inputs(power_law(noise=noise, seed=seed), lengths=(length_fit(noise=noise),))
    (found,) = forecast(made, [(n_latents, 8)])
    for one in (found.fvu, found.tokens_to_convergence, found.tokens, found.flops_dense, found.seconds):
        assert one is not None
        assert one.low <= one.value <= one.high


def test_a_law_of_one_k_is_preferred_and_the_surface_covers_the_rest() -> None:
    names = {"alpha": 0.5, "beta_k": -0.1, "beta_n": -0.3, "gamma": -0.01}
    draws = [tuple(value * (1 + 0.01 * z) for value in names.values()) for z in (-1, 0, 1)]
    points = tuple(Residual((1,), 256.0, k, "gpt2", 0.5, 0.5, 0.0) for k in (8, 16))
    surface = fit("lnk", "pure", names, draws, points)
    at_8, at_32 = forecast(inputs(power_law(), surface), [(512, 8), (512, 32)])
    assert (at_8.law, at_32.law) == ("ln", "lnk")
    expected = 0.5 - 0.1 * math.log(32) - 0.3 * math.log(512) - 0.01 * math.log(32) * math.log(512)
    assert at_32.fvu.value == pytest.approx(math.exp(expected))
    with pytest.raises(FitError, match="no fit speaks of k = 32: L\\(N\\) is fitted at k = 8"):
        forecast(inputs(), [(512, 32)])


@pytest.mark.parametrize(
    ("n_latents", "k", "says"), [(4, 8, "k = 8 is above"), (0, 1, "must be 1"), (5, 0, "must be 1")]
)
def test_sizes_that_no_autoencoder_has(n_latents: int, k: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        forecast(inputs(), [(n_latents, k)])


def test_what_nothing_tells_is_left_open() -> None:
    (found,) = forecast(ForecastInputs((), CONFIG, (power_law(),), ()), [(512, 8)])
    assert (found.tokens, found.flops_dense, found.seconds, found.speed) == (None, None, None, None)
    assert found.extrapolation == 1.0
    assert device_of([]) is None


def test_how_far_beyond() -> None:
    law = power_law(ns=(256, 512, 1024))
    assert [extrapolation(law, n) for n in (64, 256, 700, 1024, 4096)] == [0.25, 1.0, 1.0, 1.0, 4.0]


def test_speed_is_of_the_nearest_size_and_of_jobs_that_ended() -> None:
    running = measured(9, [(2**20, 0.4)], n_latents=4096, state="running", outcome=None)
    elsewhere = measured(10, [(2**20, 0.4)], n_latents=4096, device="cuda")
    rows = [*ROWS, running, elsewhere]
    assert device_of(rows) == "cpu"
    found = speed(rows, device="cpu", n_latents=4096)
    assert found is not None
    assert found.jobs == (4,)
    assert found.tokens_per_second == pytest.approx(1e5)
    assert speed(rows, device="tpu", n_latents=1) is None


def test_products_of_intervals() -> None:
    two, half = Interval(2.0, 1.0, 4.0), Interval(0.5, 0.5, 0.5)
    assert times(two, half) == pytest.approx((1.0, 0.5, 2.0))
    assert over(two, half) == pytest.approx((4.0, 2.0, 8.0))
    wide = times(two, two)
    assert wide == pytest.approx((4.0, 4 * 2 ** -math.sqrt(2), 4 * 2 ** math.sqrt(2)))
    assert times(Interval(1.0, 0.0, 1.0), half).low == pytest.approx(0.0, abs=1e-99), "an end at 0 has no logarithm"
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert stretch([]) == (1.0, 1.0, 1.0)
