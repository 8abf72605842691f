"""The bootstrap: what is drawn anew, how wide it spreads, and the interval of the irreducible term."""

import numpy as np
import pytest

from orchestrator.errors import FitError
from orchestrator.scaling.fit.bootstrap import STEEPEST, Refits, _drawn, _errors, is_runaway, refit
from orchestrator.scaling.fit.estimate import Estimate, estimate
from orchestrator.scaling.fit.fitting import fit
from orchestrator.scaling.fit.model_selection import allowed, chosen, profile, score
from orchestrator.scaling.fit.notes import seed_sigma
from orchestrator.scaling.fit.predict import predict
from orchestrator.scaling.fit.sample import Observation, Sample
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.types import Fit
from tests.job_measurements import EQUATION_3, N_OF_G1, grid, line, measured, surface

PURE = LAWS["ln"].form("pure")


def _sample(*, between: float, within: float, n_cells: int = 40, seeds: int = 3) -> Sample:
    """Return losses on a power law with errors of cells, and of seeds in them."""
    random = np.random.default_rng(0)
    sizes = np.geomspace(64, 2**16, n_cells)
    off = between * random.normal(size=n_cells)
    return Sample("", "", tuple(
        Observation((0,), n, 1.0, 8, "m", float(n**-0.2 * np.exp(u + within * random.normal())), (n, 1.0))
        for n, u in zip(sizes, off, strict=True) for _ in range(seeds)
    ))  # fmt: skip


@pytest.mark.parametrize(("between", "within"), [(0.02, 0.0), (0.0, 0.02), (0.02, 0.02), (0.01, 0.03)])
def test_errors_are_drawn_as_large_as_they_were(between: float, within: float) -> None:
    sample = _sample(between=between, within=within)
    found = estimate(PURE, sample)
    drawn = _drawn(found, sample, 4000, np.random.default_rng(1)).reshape(4000, 40, 3)
    means = drawn.mean(axis=2)
    assert np.std(means) == pytest.approx(np.hypot(between, within / np.sqrt(3)), rel=0.25)
    assert np.std(drawn - means[:, :, None]) == pytest.approx(within * np.sqrt(2 / 3), rel=0.25, abs=1e-4)


def test_those_of_one_cell_err_together() -> None:
    sample = _sample(between=0.02, within=0.0)
    drawn = _drawn(estimate(PURE, sample), sample, 10, np.random.default_rng(1)).reshape(10, 40, 3)
    np.testing.assert_allclose(drawn[:, :, 0], drawn[:, :, 2], atol=1e-9)
    assert len(_errors(estimate(PURE, sample), sample).between) == 40


def test_one_bad_seed_does_not_set_the_spread_of_all() -> None:
    """A pair of seeds of which one is 100 times the scatter off; its mean square alone would be 0.2² / 8."""
    sample = _sample(between=0.0, within=0.002, n_cells=8, seeds=2)
    bad = sample.observations[5]._replace(value=sample.observations[5].value * 1.2)
    off = sample.of([*sample.observations[:5], bad, *sample.observations[6:]])
    usual, found = (_errors(estimate(PURE, one), one) for one in (sample, off))
    assert np.std(found.within) < 3 * np.std(usual.within)
    assert (seed_sigma(off) or 1) < 3 * (seed_sigma(sample) or 0)


def test_few_points_give_wide_intervals() -> None:
    def width(n_cells: int) -> float:
        sample = _sample(between=0.01, within=0.0, n_cells=n_cells, seeds=1)
        refits = refit(estimate(PURE, sample), sample, n_refits=2000, seed=0)
        assert refits.failed == 0
        low, high = np.quantile(refits.theta[:, 1], [0.05, 0.95])
        return float(high - low) / estimate(PURE, sample).sigma

    assert width(3) > 2 * width(6) > 2 * width(24)


def test_a_bound_is_not_drawn_anew() -> None:
    rows = [measured(n, tokens=500 * n**0.6) for n in (64, 128, 256, 512)]
    bound = measured(1024, outcome="max_tokens", tokens=None, bound=1000.0)
    with_it, without = fit("tn", [*rows, bound])[0], fit("tn", rows)[0]
    assert with_it.coefficients["p"].value == pytest.approx(without.coefficients["p"].value, abs=1e-6)


def test_the_profile_contains_the_estimate_and_agrees_with_the_bootstrap() -> None:
    [found] = fit("ln", line(N_OF_G1, noise=0.003, seed=3))
    e = found.coefficients["e"]
    assert found.irreducible is not None
    low, high = found.irreducible
    assert low < e.value < high
    assert [low, high] == pytest.approx([e.low, e.high], abs=0.01)


def test_a_profile_that_reaches_nothing() -> None:
    form = LAWS["ln"].form("+e")
    [sample] = [Sample("", "", tuple(
        Observation((0,), float(n), 1.0, 8, "m", row.fvu or 0, (float(n), 1.0))
        for n, row in zip(N_OF_G1, line(N_OF_G1, e=0.0, noise=0.01), strict=True)
    ))]  # fmt: skip
    found = profile(estimate(form, sample), sample)
    assert found is not None
    assert found[0] == 0.0 < found[1]
    assert profile(estimate(PURE, sample), sample) is None


def test_the_profile_of_a_floor_over_k_says_at_which() -> None:
    [found] = fit("lnk", grid(0.001, 0), n_bootstrap=100)
    assert found.irreducible is not None
    assert found.irreducible[0] < found.irreducible[1]
    assert list(found.irreducible) == pytest.approx([np.exp(-1.32 - 0.085 * np.log(64))] * 2, rel=0.03)
    assert any("at k = 64, the geometric mean" in note for note in found.notes)


def test_which_forms_are_tried() -> None:
    def forms(n: int) -> list[str]:
        return [one.form for one in fit("ln", line([64 * 2**at for at in range(n)]), n_bootstrap=100)[0].scores]

    assert [forms(n) for n in (3, 4, 5, 6)] == [["pure"], ["pure"], ["pure", "+e"], ["pure", "+e"]]


def test_the_simplest_form_where_nothing_can_be_judged() -> None:
    [found] = fit("ln", line((64, 128, 256)), n_bootstrap=100)
    assert found.scores[0].aicc is None
    assert found.holdout_error is None
    assert "With so few points only the form without an irreducible term can be judged." in found.notes
    assert chosen(list(found.scores)) == 0


def test_the_error_at_the_size_held_out() -> None:
    def held_out(rows: list[float]) -> Fit:
        sizes = [64 * 2**at for at in range(len(rows))]
        return fit("ln", [measured(n, fvu=value) for n, value in zip(sizes, rows, strict=True)], n_bootstrap=100)[0]

    exact = [0.5 * 0.9**at for at in range(5)]
    assert held_out(exact).holdout_error == pytest.approx(0, abs=1e-6)
    off = [*exact[:-1], exact[-1] * 1.1]
    pure = next(one for one in held_out(off).scores if one.form == "pure")
    assert pure.holdout_error == pytest.approx(np.log(1.1), abs=1e-6)


def test_a_score_is_of_what_is_known() -> None:
    sample = _sample(between=0.01, within=0.0, n_cells=8, seeds=1)
    best = min(allowed(LAWS["ln"].forms, sample), key=lambda form: score(estimate(form, sample), sample).aicc or 0)
    assert best.name == "pure"


def test_more_seeds_of_the_same_errors_choose_no_other_form() -> None:
    """Five jobs at a size that err alike are one point: counted as five, they would find a floor in noise."""
    one_each = line(N_OF_G1, e=0.0, noise=0.01, seed=3)
    five_each = [measured(row.n_latents, fvu=row.fvu, seed=seed) for row in one_each for seed in range(5)]
    alone, crowd = (fit("ln", rows, n_bootstrap=100)[0].scores for rows in (one_each, five_each))
    assert [one.aicc for one in crowd] == pytest.approx([one.aicc for one in alone], abs=0.01)


@pytest.mark.parametrize(
    "places",
    [
        [*((n, 8) for n in (64, 128, 256, 512)), (512, 16), (512, 32), (512, 64)],  # one k at every n, one n at every k
        [(16 * k, k) for k in (4, 8, 16, 32, 64, 128, 256)],
        [(4 * k * k, k) for k in (4, 8, 16, 32, 64, 128, 256)],
    ],
)
def test_n_and_k_must_vary_apart(places: list[tuple[int, int]]) -> None:
    random = np.random.default_rng(0)
    rows = [measured(n, k, surface(n, k) * float(np.exp(0.01 * random.normal()))) for n, k in places]
    with pytest.raises(FitError, match=r"2 of the k at 2 of the sizes each; .* missing: \(n="):
        fit("lnk", rows, n_bootstrap=100)


def _preferred(found: Fit) -> str:
    return min(found.scores, key=lambda one: one.aicc or 0.0).form


def test_the_widest_form_is_printed_and_the_one_that_aicc_prefers_is_told() -> None:
    """Where errors of 1% hide the floor, b without it is far off, and its interval knows nothing of that."""
    fits = [fit("ln", line(N_OF_G1, noise=noise, seed=seed), n_bootstrap=100)[0]
            for noise, seed in ((0.01, 4), (0.01, 9), (0.0003, 0))]  # fmt: skip
    assert [one.form for one in fits] == ["+e", "+e", "+e"]
    assert [_preferred(one) for one in fits] == ["pure", "pure", "+e"]
    told = [[note for note in one.notes if note.startswith("AICc prefers the form pure (by ")] for one in fits]
    assert [len(notes) for notes in told] == [1, 1, 0]
    assert told[0][0].endswith("a special case of +e: the intervals allow for both.")


def test_the_interval_holds_the_truth_whichever_form_aicc_prefers() -> None:
    """Eq. 3 on 24 cells at 2% noise: the intervals of AICc's form held β_n in 60%, ζ in 27% of 60 repetitions."""
    held, n_tilted = dict.fromkeys(EQUATION_3, 0), 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        rows = [measured(n, k, surface(n, k) * float(np.exp(0.02 * random.normal())))
                for n in (512, 1024, 2048, 4096, 8192, 16384) for k in (8, 16, 32, 64)]  # fmt: skip
        [found] = fit("lnk", rows, n_bootstrap=100, seed=seed)
        n_tilted += found.form == "+e(k)"
        for name, value in EQUATION_3.items():
            inside = found.coefficients.get(name)
            held[name] += inside is not None and inside.low <= value <= inside.high
    assert min(held[name] for name in held if name != "eta") >= 15, held
    assert held["eta"] >= n_tilted - 3, "how the floor goes with k is told where the jobs determine it"


def test_the_interval_holds_the_exponent_of_a_law_without_a_floor() -> None:
    """The widest form has a term too many there: its interval is widened to hold that of the form without."""
    held = 0
    for seed in range(20):
        rows = line([2**e for e in range(9, 19)], a=0.4, b=-0.2, e=0.0, noise=0.01, seed=seed)
        [found] = fit("ln", rows, n_bootstrap=100, seed=seed)
        held += found.coefficients["b"].low <= -0.2 <= found.coefficients["b"].high
    assert held >= 15


def test_a_forecast_allows_for_the_term_that_was_not_chosen() -> None:
    """Six sizes with errors of 1% do not tell that there is a floor: a forecast beyond them holds the truth anyway."""
    far = 4 * max(N_OF_G1)
    truth = float(line([far])[0].fvu or 0)
    fits = [fit("ln", line(N_OF_G1, noise=0.01, seed=seed), n_bootstrap=200)[0] for seed in range(40)]
    assert sum(_preferred(one) == "pure" for one in fits) >= 10
    told = [predict(LAWS[one.law], one, x=far) for one in fits]
    assert all(one.low <= one.value <= one.high for one in told)
    assert sum(one.low <= truth <= one.high for one in told) >= 32


def test_the_other_forms_exponent_has_its_interval() -> None:
    [found] = fit("ln", line(N_OF_G1, noise=0.01, seed=4), n_bootstrap=400)
    assert (found.form, _preferred(found)) == ("+e", "pure")
    [told] = [note for note in found.notes if note.startswith("Without an irreducible term b would be")]
    low, high = map(float, told.partition("(")[2].rstrip(").").split(" to "))
    b = found.coefficients["b"]
    assert b.low < -0.163 < low < high <= round(b.high, 3)


def test_a_floor_too_many_leaves_a_k_that_nobody_trained_bounded() -> None:
    """Where there is no floor any tilt of it fits: no refit is taken in which it grows faster than k."""
    random = np.random.default_rng(0)
    rows = [measured(n, k, float(n**-0.12 * k**-0.2 * np.exp(0.01 * random.normal())))
            for n in (64, 128, 256, 512, 1024, 2048) for k in (4, 8, 16, 32)]  # fmt: skip
    [found] = fit("lnk", rows, n_bootstrap=400)
    assert ([one.form for one in found.scores], found.form) == (["pure", "+e", "+e(k)"], "+e(k)")
    far = predict(LAWS[found.law], found, x=8192, k=64)
    assert far.high < 1.5 * far.value


@pytest.mark.parametrize(("ks", "form"), [((8, 16), "+e"), ((4, 8, 16), "+e(k)")])
def test_two_k_do_not_tell_how_a_floor_tilts(ks: tuple[int, ...], form: str) -> None:
    random = np.random.default_rng(0)
    rows = [measured(n, k, float((1.2 * n**-0.25 * k**-0.15 + 0.1) * np.exp(0.003 * random.normal())))
            for n in (64, 128, 256, 512, 1024, 2048) for k in ks]  # fmt: skip
    [found] = fit("lnk", rows, n_bootstrap=400)
    assert (found.form, found.taken) == (form, form)
    assert predict(LAWS[found.law], found, x=8192, k=64).high < 0.3


def test_a_term_that_only_the_smallest_size_would_have_is_not_drawn() -> None:
    """Errors of 6%: the form with e fits best as a step, n^-40 above a floor, which says 1e11 of a smaller size."""
    rows = line((64, 128, 256, 512, 1024, 2048), noise=0.06, seed=6)
    [found] = fit("ln", rows, n_bootstrap=400)
    assert ([one.form for one in found.scores], found.form, found.drawn_form) == (["pure", "+e"], "pure", "pure")
    assert predict(LAWS[found.law], found, x=64).high < 1.5
    assert not [note for note in found.notes if " to " in note and "would be" in note], (
        "of no refits there is no interval"
    )


def test_a_chosen_form_that_is_a_step_keeps_its_refits() -> None:
    """Its interval is as wide as it is unsettled: of no refits it would have no width at all."""
    losses = (0.9, 0.3, 0.303, 0.297, 0.3)
    [found] = fit("ln", [measured(64 * 2**at, fvu=loss) for at, loss in enumerate(losses)], n_bootstrap=200)
    assert (found.form, _preferred(found)) == ("+e", "+e")
    assert found.coefficients["b"].value < -STEEPEST
    assert found.n_bootstrap > 100
    assert found.coefficients["b"].low < found.coefficients["b"].high


@pytest.mark.parametrize(("n_astray", "form", "n_draws"), [(90, "+e", 110), (100, "pure", 200)])
def test_refits_that_run_away_are_not_drawn(
    monkeypatch: pytest.MonkeyPatch, n_astray: int, form: str, n_draws: int
) -> None:
    def some_astray(found: Estimate, sample: Sample, *, n_refits: int, seed: int) -> Refits:
        theta = refit(found, sample, n_refits=n_refits, seed=seed).theta.copy()
        if found.form.floor:
            theta[:, 1] = np.where(np.arange(len(theta)) < n_astray, -40.0, -0.2)
        return Refits(theta, 0)

    monkeypatch.setattr("orchestrator.scaling.fit.fitting.refit", some_astray)
    [found] = fit("ln", line(N_OF_G1, noise=0.01, seed=4), n_bootstrap=200)
    assert (_preferred(found), found.form, len(found.draws)) == ("pure", form, n_draws)
    assert len(found.draws[0]) == (3 if form == "+e" else 2)


def test_what_is_a_runaway() -> None:
    sample = _sample(between=0.0, within=0.0, n_cells=3, seeds=1)
    theta = np.array([[1.0, -0.2, -2.0], [1.0, -40.0, -2.0], [1.0, 3.1, -2.0]])
    assert is_runaway(LAWS["ln"].form("+e"), theta, sample).tolist() == [False, True, True]
    assert not is_runaway(PURE, theta[:, :2], sample).any(), "without a floor such an exponent misses its points"
    tilted = Sample("", "", tuple(one._replace(z=2.0**20) for one in sample.observations))
    theta = np.array([[1.0, 0.0, -0.2, -0.1, -2.0], [1.0, 0.0, -0.2, -0.3, -2.0]])
    assert is_runaway(LAWS["lnk"].form("+e"), theta, tilted).tolist() == [False, True], "by gamma, at a large k"
    floors = np.array([[1.0, 0.0, -0.2, 0.0, -2.0, tilt] for tilt in (-0.9, 1.1)])
    assert is_runaway(LAWS["lnk"].form("+e(k)"), floors, sample).tolist() == [False, True], "by the floor's tilt"


def test_rates_by_factors_of_two_leave_their_exponent_open() -> None:
    """All on one line, because the rates tried are: anything within a factor of two of it would have looked alike."""
    rows = [measured(n, lr=rate * n**-0.5, outcome=outcome) for n in (64, 128, 256, 512, 1024, 2048)
            for rate, outcome in ((1, "converged"), (2, "converged"), (4, "diverged"))]  # fmt: skip
    [found] = fit("lr", rows)
    q = found.coefficients["q"]
    assert found.n_bootstrap > 1950
    assert q.value == pytest.approx(-0.5, abs=1e-4)
    least_squares = np.log(2) / np.sqrt(12) / np.sqrt(6 * np.var(np.log([64, 128, 256, 512, 1024, 2048])))
    assert 1 < (q.high - q.low) / (2 * 1.645 * least_squares) < 1.6


def test_no_floor_is_above_what_was_reached() -> None:
    """Noise this large refutes hardly any floor; a loss that was reached does."""
    for seed in range(5):
        losses = [row.fvu or 0.0 for row in line([2**i for i in range(6, 12)], b=-0.5, e=0.2, noise=0.1, seed=seed)]
        places = [(float(2 ** (6 + i)), loss) for i, loss in enumerate(losses)]
        sample = Sample("", "", tuple(Observation((0,), n, 1.0, 8, "m", loss, (n, 1.0)) for n, loss in places))
        best = estimate(LAWS["ln"].form("+e"), sample)
        found = profile(best, sample)
        assert found is not None
        assert 0 <= found[0] <= found[1] <= max(float(np.exp(best.theta[-1])), min(losses)) * (1 + 1e-9)
