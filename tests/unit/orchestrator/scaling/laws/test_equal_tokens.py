"""Laws at equal tokens: what jobs were after a number of tokens, whether or not they converged."""

import math

import pytest

from orchestrator.errors import FitError
from orchestrator.scaling.fit.equal_tokens import at_tokens, common_tokens, why_not_there
from orchestrator.scaling.fit.fitting import fit
from orchestrator.scaling.fit.options import FitOptions
from orchestrator.scaling.types import JobMeasurement
from tests.job_measurements import measured, point

SIZES, TOKENS = (256, 512, 1024, 2048), (1000, 2000, 4000)


def unconverged(n: int, lr: float = 0.01, *, last: int = 4000, scale: float = 1.0) -> JobMeasurement:
    """Return a job out of budget, whose fvu after t tokens is scale · n^(−0.2) · (t / 1000)^(−0.5)."""
    curve = tuple(point(t, scale * n**-0.2 * (t / 1000) ** -0.5) for t in TOKENS if t <= last)
    return measured(n, fvu=curve[-1].fvu, outcome="max_tokens", curve=curve, tokens_seen=last, lr=lr, tokens=None)


def test_a_loss_between_two_points_lies_on_the_line_in_log_log() -> None:
    row = unconverged(256)
    for tokens in (1000, 1500, 2828, 4000):
        assert at_tokens(row, tokens).fvu == pytest.approx(256**-0.2 * (tokens / 1000) ** -0.5)
    assert math.isnan(at_tokens(row, 5000).fvu or 0.0)
    assert why_not_there(row, 5000) == "its curve goes from 1,000 to 4,000 tokens, not to 5,000"


def test_unconverged_jobs_make_a_law_at_equal_tokens_and_none_at_convergence() -> None:
    rows = [unconverged(n) for n in SIZES]
    with pytest.raises(FitError):
        fit("ln", rows)
    [found] = fit("lnt", rows, options=FitOptions(tokens=2000), n_bootstrap=100)
    assert found.group == "k=8, tokens=2000"
    assert found.coefficients["b"].value == pytest.approx(-0.2, abs=1e-3)
    assert [residual.observed for residual in found.residuals] == pytest.approx([n**-0.2 / 2**0.5 for n in SIZES])


def test_without_a_number_the_tokens_are_those_that_every_job_has() -> None:
    rows = [unconverged(n, last=2000 if n == 512 else 4000) for n in SIZES]
    assert common_tokens(rows) == 2000
    [found] = fit("lnt", rows, n_bootstrap=100)
    assert (found.group, found.options["tokens"]) == ("k=8, tokens=2000", 2000)


def test_a_job_that_is_short_is_told_to_go_on() -> None:
    rows = [unconverged(n, last=4000 if n == 256 else 2000) for n in SIZES[:3]]
    with pytest.raises(FitError, match=r"L_T\(N\) \(k=8, tokens=4000\) needs") as told:
        fit("lnt", rows, options=FitOptions(tokens=4000))
    assert f"orch extend {rows[1].job_id} --max-tokens TOKENS" in told.value.hint


def best_rate(n: int) -> float:
    return 0.1 / math.sqrt(n)


def with_rates(n: int, rates: tuple[float, ...]) -> list[JobMeasurement]:
    """Return jobs whose loss is a parabola in ln lr about `best_rate`."""
    return [unconverged(n, lr, scale=math.exp(0.1 * math.log(lr / best_rate(n)) ** 2)) for lr in rates]


def test_the_best_rate_is_the_vertex_and_its_law_the_planted_one() -> None:
    rows = [row for n in SIZES for row in with_rates(n, (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2))]
    [found] = fit("lrt", rows, options=FitOptions(tokens=4000), n_bootstrap=100)
    assert found.coefficients["q"].value == pytest.approx(-0.5, abs=1e-6)
    assert [one.observed for one in found.residuals] == pytest.approx([best_rate(n) for n in SIZES])


def test_an_end_of_the_rates_is_a_bound_or_left_out() -> None:
    rows = [row for n in SIZES for row in with_rates(n, (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2))]
    rows += with_rates(64, (1e-3, 2e-3, 4e-3)) + with_rates(2**16, (2e-3, 4e-3, 8e-3))
    [found] = fit("lrt", rows, options=FitOptions(tokens=4000), n_bootstrap=100)
    assert [(one.x, one.censored) for one in found.residuals if one.censored] == [(64, True)]
    whys = {one.why for one in found.excluded}
    assert "the smallest learning rate tried at its n is the best: the best may be smaller" in whys


def test_a_rate_that_diverged_bounds_the_best() -> None:
    rows = [row for n in SIZES for row in with_rates(n, (2e-3, 4e-3))]
    rows += [measured(n, lr=8e-3, outcome="diverged", fvu=math.nan) for n in SIZES]
    [found] = fit("lrt", [*rows, *(unconverged(n, 1e-3, scale=2) for n in SIZES)], n_bootstrap=100)
    assert {one.x: one.observed for one in found.residuals}[256] == 4e-3
    assert not any(one.censored for one in found.residuals)
