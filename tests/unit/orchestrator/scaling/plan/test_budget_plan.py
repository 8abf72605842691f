"""Plans from fits made by hand: what is chosen, what it costs, and what no budget or law allows."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError, FitError
from orchestrator.scaling.fit.envelope import END, GAP
from orchestrator.scaling.fit.outliers import OFF_LAW, OFF_TREND
from orchestrator.scaling.plan.budget import Allowance, allowance
from orchestrator.scaling.plan.budget_plan import plan_within_budget
from orchestrator.scaling.plan.candidates import MARGIN, budget_tokens, candidate, rate
from orchestrator.scaling.plan.forecast import ForecastInputs, noise
from orchestrator.scaling.plan.target_plan import FARTHEST, floor, plan_for_target, smallest
from orchestrator.scaling.types import Fit, Residual, Score
from tests.made_fits import fit, measured, power_law

CONFIG = parse(
    {
        "sae": {"n_latents": 256, "k": 8},
        "training": {"batch_tokens": 1024, "max_tokens": 2**22},
        "optimizer": {"lr": 1e-3},
    }
)
NS = (256, 512, 1024, 2048)
ROWS = tuple(
    measured(at + 1, [(2**20, 0.4)], n_latents=n, tokens_to_convergence={0.01: 2**19}, lr=1e-3 / math.sqrt(n / 256))
    for at, n in enumerate(NS)
)


def inputs(*losses: Fit, **more: object) -> ForecastInputs:
    start = {
        "rows": ROWS,
        "config": CONFIG,
        "losses": losses or (power_law(noise=0.02),),
        "lengths": (),
        "device": "cpu",
    }
    return ForecastInputs(**(start | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "amount", "unit", "device"),
    [
        ("200 GPU-hours", 720_000, "seconds", "gpu"), ("3h", 10_800, "seconds", None), ("90m", 5400, "seconds", None),
        ("1.5 hours", 5400, "seconds", None), ("2 days", 172_800, "seconds", None), ("1e18 FLOPs", 1e18, "FLOPs", None),
        ("2E15flops", 2e15, "FLOPs", None), ("10 gpu hours", 36_000, "seconds", "gpu"),
    ],
)  # fmt: skip
def test_budgets(text: str, amount: float, unit: str, device: str | None) -> None:
    assert allowance(text) == (amount, unit, device)


@pytest.mark.parametrize("text", ["", "a lot", "5", "-3h", "0h", "3 parsecs", "1e18 GPU-FLOPs", "1e999h", "h"])
def test_no_budgets(text: str) -> None:
    with pytest.raises(ConfigError, match="is no amount of time or FLOPs"):
        allowance(text)


@settings(deadline=None, max_examples=40)
@given(st.floats(1.0, 1e5), st.sampled_from(["seconds", "FLOPs"]), st.integers(0, 3))
def test_a_plan_never_exceeds_its_budget(amount: float, unit: str, seed: int) -> None:
    limit = Allowance(amount * (1e10 if unit == "FLOPs" else 1), unit)  # type: ignore[arg-type]
    made = inputs(power_law(noise=0.02, seed=seed))
    cheapest = min(candidate(made, n, 8).price(limit.unit) or 0.0 for n in (*NS, 4096, 8192, 16_384))
    if cheapest > limit.amount:
        with pytest.raises(ConfigError, match="below the cheapest job"):
            plan_within_budget(made, limit)
        return
    chosen, _ = plan_within_budget(made, limit)
    assert sum(one.job.price(limit.unit) or math.inf for one in chosen) <= limit.amount
    configs = [one.job.config.config_id for one in chosen]
    assert len(set(configs)) == len(configs)
    seeds = {(row.n_latents, row.k, row.seed) for row in ROWS}
    assert not seeds & {(one.job.n_latents, one.job.k, one.job.seed) for one in chosen}


def line(sigma: float = 0.05, n_draws: int = 2000) -> Fit:
    """Return a pure power law through four points that err by sigma, with the draws that least squares implies."""
    x = np.log(np.array(NS, dtype=float))
    covariance = sigma**2 * np.linalg.inv(_information(x))
    draws = np.random.default_rng(0).multivariate_normal([1.0, -0.3], covariance, n_draws)
    errors = sigma * np.array([1, -1, 1, -1]) / math.sqrt(2)  # whose spread, two degrees of freedom less, is sigma
    points = tuple(
        Residual((at + 1,), n, 8, "gpt2", 0.5, 0.5, float(error))
        for at, (n, error) in enumerate(zip(NS, errors, strict=True))
    )
    return fit("ln", "pure", {"a": 1.0, "b": -0.3}, draws.tolist(), points, group="k=8")


def _information(x: NDArray[np.float64], weights: NDArray[np.float64] | float = 1.0) -> NDArray[np.float64]:
    design = np.stack([np.ones_like(x), x], axis=1)
    found: NDArray[np.float64] = (design.T * weights) @ design
    return found


@pytest.mark.parametrize(("between", "n_latents"), [(0.0, 256), (0.03, 256), (0.05, 4096)])
def test_what_shrinks_is_what_least_squares_says(between: float, n_latents: int) -> None:
    """The variance of the slope of a line through four points and one job more: another seed, or a fifth point."""
    within = 0.05**2 - between**2
    known = replace(line(n_draws=40_000), seed_sigma=math.sqrt(within))
    assert noise(known) == pytest.approx(0.05)
    (choice, *_), _ = plan_within_budget(inputs(known), Allowance(1e6, "seconds"))
    assert choice.job.n_latents == n_latents
    x = np.log(np.array(sorted({*NS, n_latents}), dtype=float))
    errors = np.full(len(x), between**2 + within)
    before = np.linalg.inv(_information(x[:4]))[1, 1] * 0.05**2
    if n_latents in NS:
        errors[NS.index(n_latents)] = between**2 + within / 2
    after = np.linalg.inv(_information(x, weights=1 / errors))[1, 1]
    told = int(choice.why.partition("error of b to ")[2].partition("%")[0]) / 100
    assert told == pytest.approx(math.sqrt(after / before), abs=0.02)


@pytest.mark.parametrize("flag", [OFF_LAW, OFF_TREND, END, GAP])
def test_a_job_that_was_left_out_is_no_noise(flag: str) -> None:
    known = line()
    far_off = replace(known.residuals[0], log_residual=0.5)
    assert noise(replace(known, residuals=(*known.residuals, far_off))) > 0.1
    left_out = replace(far_off, flagged=flag)
    assert noise(replace(known, residuals=(*known.residuals, left_out))) == noise(known)


def test_seeds_where_sizes_err_rather_than_seeds_bring_nothing() -> None:
    """Six seeds of a size whose loss is off the law are as far off as one."""
    alike = replace(line(), seed_sigma=0.0)
    choices, _ = plan_within_budget(inputs(alike), Allowance(1e6, "seconds"))
    assert not [one for one in choices if one.job.n_latents in NS]
    apart, _ = plan_within_budget(inputs(replace(line(), seed_sigma=0.05)), Allowance(1e6, "seconds"))
    assert [one for one in apart if one.job.n_latents in NS]


def test_new_sizes_and_seeds_where_one_job_tells_little() -> None:
    quiet, promises = plan_within_budget(inputs(line()), Allowance(1e6, "seconds"))
    assert any("2× beyond the largest" in one.why and one.job.n_latents == 4096 for one in quiet)
    assert any("another seed: one job errs by 5.0%" in one.why for one in quiet)
    assert max(sum(one.job.n_latents == n for one in quiet) for n in (*NS, 4096)) <= 4
    loud, _ = plan_within_budget(inputs(replace(line(), seed_sigma=0.3)), Allowance(1e6, "seconds"))
    assert "errs by 30.0%" in " ".join(one.why for one in loud)
    assert "b = -0.3000" in promises[0]


def test_a_form_that_is_not_ruled_out_is_told() -> None:
    known = line()
    scores = tuple(Score(form, 2, aicc, 0.05, None) for form, aicc in (("pure", -20.0), ("+e", -17.0)))
    _, (told,) = plan_within_budget(inputs(replace(known, scores=scores)), Allowance(1e6, "seconds"))
    assert told.endswith("; AICc does not rule out +e: larger sizes tell them apart")
    sure = replace(known, scores=(scores[0], replace(scores[1], aicc=-10.0)))
    _, (told,) = plan_within_budget(inputs(sure), Allowance(1e6, "seconds"))
    assert "rule out" not in told


def test_jobs_that_have_not_ended_are_expected_and_told_apart() -> None:
    waiting = [measured(9, n_latents=n, state="queued", outcome=None, lr=2.5e-4) for n in (4096, 8192)]
    plain, before = plan_within_budget(inputs(line()), Allowance(1e6, "seconds"))
    later, after = plan_within_budget(inputs(line(), rows=(*ROWS, *waiting)), Allowance(1e6, "seconds"))
    first = next(one for one in plain if one.job.n_latents == 4096)
    assert "beyond" in first.why
    again = [one for one in later if one.job.n_latents in {4096, 8192}]
    assert len(later) < len(plain)
    assert all(one.job.seed > 0 and "another seed" in one.why for one in again)
    assert before[0].startswith("L(N) (k=8): b = -0.3000")
    assert "not ended" not in before[0]
    assert "; jobs 9, 9, not ended yet, should bring them to " in after[0]
    alone, planned = (
        float(found[1])
        for found in (re.search(r"bring them to (\d+)%", after[0]), re.search(r"fall to (\d+)%", after[0]))
        if found
    )
    assert planned <= alone < 100
    assert all("beside one that has not ended" in one.why for one in again)
    assert not any("beside one" in one.why for one in plain)


def test_a_job_of_the_wanted_size_that_has_not_ended_is_told() -> None:
    (choice,), told = plan_for_target(inputs(power_law()), 0.2)
    assert told == []
    waiting = measured(9, n_latents=choice.job.n_latents, k=choice.job.k, state="running", outcome=None, lr=2.5e-4)
    _, told = plan_for_target(inputs(power_law(), rows=(*ROWS, waiting)), 0.2)
    assert told == ["of this n and k there is, not ended yet: job 9; look at it first"]


def test_a_plan_without_a_price_or_draws() -> None:
    bare = inputs(rows=tuple(replace(row, device=None) for row in ROWS), device=None)
    with pytest.raises(FitError, match="nothing tells what a job would cost in seconds"):
        plan_within_budget(bare, Allowance(10, "seconds"))
    with pytest.raises(FitError, match="no bootstrap draws"):
        plan_within_budget(inputs(replace(power_law(), draws=())), Allowance(10, "seconds"))


def test_where_a_rate_comes_from() -> None:
    assert rate(inputs(), 512, 8) == (ROWS[1].lr, "the best there")
    assert rate(inputs(), 8192, 8) == (1.77e-4, "on from n = 2048 as 1/√n")
    autos = tuple(replace(row, lr_is_auto=True) for row in ROWS)
    assert rate(inputs(rows=autos), 512, 8) == (None, "auto, as there")
    assert rate(inputs(rows=autos), 8192, 8) == (None, "auto")
    star = fit("lr", "pure", {"A": 0.5, "q": -0.5}, [(0.5, -0.5)] * 3, power_law().residuals, group="k=8")
    assert rate(inputs(rates=(star,)), 8192, 8) == (5.52e-3, "lr*(N)")
    worse = [replace(row, job_id=row.job_id + 10, lr=2 * (row.lr or 0), fvu=0.5) for row in ROWS]
    lr, told = rate(inputs(rows=(*ROWS, *worse), rates=(star,)), 8192, 8)
    assert (lr, told) == (2.76e-3, "0.5 of lr*(N), as the best so far are")


def test_where_a_budget_of_tokens_comes_from() -> None:
    assert budget_tokens(inputs(), 512, 8) == math.ceil(MARGIN * 2**20 / 1024) * 1024
    autos = tuple(replace(row, lr_is_auto=True) for row in ROWS)
    assert budget_tokens(inputs(rows=autos), 512, 8) == 2**22, "auto hangs on the budget"
    assert budget_tokens(inputs(), 8192, 8) == 2**22, "as at the nearest size"
    length = fit("tn", "pure", {"A": 1000.0, "p": 0.6}, [(1000.0, 0.6)] * 3, power_law().residuals, group="k=8")
    told = budget_tokens(inputs(lengths=(length,)), 8192, 8)
    assert told == math.ceil(MARGIN * 2 * 1000 * 8192**0.6 / 1024) * 1024


def test_the_smallest_size_that_reaches_a_loss() -> None:
    law = power_law()
    (choice,), _ = plan_for_target(inputs(law), 0.2)
    exact = math.exp((0.5 - math.log(0.1)) / 0.3)
    assert exact <= choice.job.n_latents <= exact * 2 ** (1 / 16) * 33 / 32
    assert choice.job.n_latents % 2 ** (choice.job.n_latents.bit_length() - 6) == 0
    assert "0.2" in choice.why
    assert smallest(law, 0.9, 8) == 32, "as far down as an eighth of the smallest"


def test_the_cheapest_k_is_chosen_and_the_others_are_told() -> None:
    small, large = power_law(), power_law(e=0.05)
    at_16 = replace(large, group="k=16", residuals=tuple(replace(one, k=16) for one in large.residuals))
    (choice,), told = plan_for_target(inputs(small, at_16), 0.2)
    assert choice.job.k == 16
    assert told[0].startswith("k = 8 would take n_latents = ")
    (kept,), _ = plan_for_target(inputs(small, at_16), 0.2, [8])
    assert kept.job.k == 8
    (only,), told = plan_for_target(inputs(small, at_16), 0.08)
    assert only.job.k == 16
    assert told == ["k = 8 does not reach fvu 0.08: its floor is 0.1000"]


def test_what_cannot_be_reached() -> None:
    with pytest.raises(ConfigError, match=r"no size reaches fvu 0\.05: the floor .* e = 0\.1000 \(.*\) at k = 8"):
        plan_for_target(inputs(), 0.05)
    pure = fit("ln", "pure", {"a": 0.5, "b": -0.1}, [(0.5, -0.1)] * 3, power_law().residuals, group="k=8")
    assert floor(pure, 8) is None
    with pytest.raises(ConfigError, match=f"no size up to {FARTHEST:g}× the largest"):
        plan_for_target(inputs(pure), 0.01)
    for target in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ConfigError, match="no share between 0 and 1"):
            plan_for_target(inputs(), target)
    with pytest.raises(FitError, match="no fit speaks of k = 64"):
        plan_for_target(inputs(), 0.2, [64])


def test_the_form_that_was_drawn_may_have_a_term_more() -> None:
    """Its exponent and its losses are what a plan shrinks, and its floor's interval what a target is told."""
    known = line()
    drawn = tuple((a, 1.2 * b, 0.01) for a, b in known.draws)
    wide = replace(known, draws=drawn, drawn_form="+e")
    _, (narrow,) = plan_within_budget(inputs(known), Allowance(1e6, "seconds"))
    choices, (told,) = plan_within_budget(inputs(wide), Allowance(1e6, "seconds"))
    assert choices
    assert "by the form pure; its error should fall to" in narrow
    assert "by the form pure; its error, reckoned in the form +e, should fall to" in told
    names = {"alpha": 0.5, "beta_k": -0.1, "beta_n": -0.3, "gamma": -0.01, "zeta": -2.0}
    surface = fit("lnk", "+e", names, [[*names.values()]] * 50, residuals=())
    more = replace(surface, draws=tuple((*names.values(), eta) for eta in (-0.1, 0.1)), drawn_form="+e(k)")
    assert floor(surface, 16) == pytest.approx((math.exp(-2.0),) * 3)
    base = floor(more, 16)
    assert base is not None
    assert base.low < base.value < base.high
    assert base.value == pytest.approx(math.exp(-2.0))


def test_the_floor_of_a_surface() -> None:
    names = {"alpha": 0.5, "beta_k": -0.1, "beta_n": -0.3, "gamma": -0.01, "zeta": -2.0, "eta": -0.1}
    points = tuple(Residual((1,), n, k, "gpt2", 0.5, 0.5, 0.0) for k in (8, 16) for n in (256.0, 512.0))
    draws = [tuple(value * (1 + 0.02 * z) for value in names.values()) for z in (-1, 0, 1)]
    surface = fit("lnk", "+e(k)", names, draws, points)
    found = floor(surface, 16)
    assert found is not None
    assert found.value == pytest.approx(math.exp(-2.0 - 0.1 * math.log(16)))
    with pytest.raises(ConfigError, match=r"at k = 8; e = .* at k = 16"):
        plan_for_target(inputs(surface), 0.05)
    assert plan_within_budget(inputs(surface), Allowance(1e5, "seconds"))[0]
