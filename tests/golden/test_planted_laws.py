"""Laws that were planted are found, in their form, inside their intervals; the figures are printed (pytest -s)."""

import numpy as np
import pytest

from orchestrator.scaling.fit.fitting import fit
from orchestrator.scaling.fit.predict import predict
from orchestrator.scaling.laws.registry import LAWS
from orchestrator.scaling.types import Fit
from tests.job_measurements import EQUATION_3, N_OF_G1, grid, line, measured, surface

REPETITIONS = 200
TRUTH = {"a": 0.4, "b": -0.163, "e": 0.199}


def _inside(found: Fit, name: str, truth: float) -> bool:
    return found.coefficients[name].low <= truth <= found.coefficients[name].high


@pytest.mark.parametrize(
    ("n", "k", "loss"), [(2**11, 8, 0.6939), (2**13, 32, 0.5441), (2**17, 128, 0.3357), (2**24, 512, 0.1868)]
)
def test_the_table_of_equation_3(n: int, k: int, loss: float) -> None:
    assert surface(n, k) == pytest.approx(loss, abs=5e-5)


@pytest.mark.parametrize("seed", range(5))
def test_equation_3_is_recovered_from_noisy_losses(seed: int) -> None:
    [found] = fit("lnk", grid(0.01, seed), seed=seed)
    gamma, eta = found.coefficients["gamma"], found.coefficients["eta"]
    print(f"\nseed {seed}: form {found.form}, gamma {gamma.value:.4f} ({gamma.low:.4f} to {gamma.high:.4f}), "
          f"eta {eta.value:.4f} ({eta.low:.4f} to {eta.high:.4f}), held out {found.holdout_error:.2%}")  # fmt: skip
    assert found.form == "+e(k)"
    assert abs(gamma.value - EQUATION_3["gamma"]) <= 0.006
    assert eta.low <= EQUATION_3["eta"] <= eta.high
    assert found.holdout_error is not None
    assert found.holdout_error <= 0.03
    by_form = {one.form: one.aicc or 0.0 for one in found.scores}
    assert by_form["pure"] > by_form["+e"] > by_form["+e(k)"]


def test_equation_3_without_noise_is_exact() -> None:
    [found] = fit("lnk", grid(0.0, 0), n_bootstrap=100)
    assert found.form == "+e(k)"
    for name, truth in EQUATION_3.items():
        assert found.coefficients[name].value == pytest.approx(truth, rel=1e-6)
    assert predict(LAWS[found.law], found, x=2**24, k=512).value == pytest.approx(0.1868, abs=5e-5)


def test_the_truth_is_inside_its_interval_as_often_as_it_should_be() -> None:
    """Six sizes, errors of 0.3%: three coefficients, three degrees of freedom."""
    fits = [fit("ln", line(N_OF_G1, noise=0.003, seed=at), n_bootstrap=200, seed=at)[0] for at in range(REPETITIONS)]
    inside = {name: np.mean([name in one.coefficients and _inside(one, name, truth) for one in fits])
              for name, truth in TRUTH.items()}  # fmt: skip
    profiled = np.mean(
        [one.irreducible is not None and one.irreducible[0] <= 0.199 <= one.irreducible[1] for one in fits]
    )
    worse = np.mean([(one.scores[0].aicc or 0.0) > (one.scores[1].aicc or 0.0) for one in fits])
    print(f"\nof {REPETITIONS}: inside the 90% interval {inside}, e in its profile {profiled}, without e worse {worse}")
    assert min(inside.values()) >= 0.85
    assert profiled >= 0.85
    assert worse == 1.0
    assert any("Without an irreducible term b would be -0.09" in note for note in fits[0].notes)


def test_the_exponent_without_e_is_the_known_wrong_one() -> None:
    [found] = fit("ln", line(N_OF_G1), n_bootstrap=100)
    assert found.coefficients["b"].value == pytest.approx(-0.163, abs=1e-6)
    assert found.coefficients["e"].value == pytest.approx(0.199, abs=1e-6)
    assert "Without an irreducible term b would be -0.090." in found.notes


def _preferred(found: Fit) -> str:
    return min(found.scores, key=lambda one: one.aicc or 0.0).form


def test_a_pure_power_law_is_preferred_without_an_irreducible_term() -> None:
    fits = [fit("ln", line(N_OF_G1, e=0.0, noise=0.003, seed=at), n_bootstrap=100)[0] for at in range(50)]
    pure, held = (
        np.mean([_preferred(one) == "pure" for one in fits]),
        np.mean([_inside(one, "b", -0.163) for one in fits]),
    )
    print(f"\npure power law: in {pure:.0%} of 50 AICc prefers it without e; b inside its interval in {held:.0%}")
    assert pure >= 0.9
    assert held >= 0.8


def test_one_bad_job_does_not_move_the_law() -> None:
    rows = line([2**e for e in range(8, 20)], noise=0.003)
    rows[5] = measured(rows[5].n_latents, fvu=(rows[5].fvu or 0) * 1.3)
    [found] = fit("ln", rows, n_bootstrap=200)
    assert found.coefficients["b"].value == pytest.approx(-0.163, abs=0.02)
    assert max(found.residuals, key=lambda one: abs(one.log_residual)).jobs == (rows[5].job_id,)


def test_tokens_to_convergence_with_bounds() -> None:
    random = np.random.default_rng(0)
    rows = [measured(n, tokens=500 * n**0.6 * float(np.exp(0.05 * random.normal()))) for n in (64, 128, 256, 512, 1024)]
    cut = measured(2048, outcome="max_tokens", tokens=None, bound=30_000.0)  # the truth is 48,500
    [found] = fit("tn", [*rows, cut])
    assert _inside(found, "p", 0.6)
    assert found.coefficients["p"].value == pytest.approx(0.6, abs=0.08)
    assert [one.jobs for one in found.residuals if one.censored] == [(cut.job_id,)]
    assert "1 of 6 points are bounds: the truth is above them." in found.notes
    higher = measured(2048, outcome="max_tokens", tokens=None, bound=200_000.0)
    assert fit("tn", [*rows, higher])[0].coefficients["p"].value > found.coefficients["p"].value, "a bound pushes"


def test_the_largest_learning_rate_that_converges() -> None:
    rows = []
    for at, n in enumerate((64, 256, 1024, 4096)):
        largest = 0.08 / 2**at  # ∝ n^(−1/2)
        for step, outcome in ((0.25, "converged"), (0.5, "converged"), (1, "converged"), (2, "diverged")):
            rows.append(measured(n, fvu=0.3 + 0.1 * abs(step - 0.5), lr=largest * step, outcome=outcome))
    [found] = fit("lr", rows)
    assert found.coefficients["q"].value == pytest.approx(-0.5, abs=1e-6)
    assert [one.observed for one in found.residuals] == pytest.approx([0.08, 0.04, 0.02, 0.01])
    assert any(
        "The best lr (lowest loss), by n: 64: 0.04, 256: 0.02" in note and "n^-0.50" in note for note in found.notes
    )


def test_larger_subjects_have_shallower_laws() -> None:
    random = np.random.default_rng(0)
    rows = [
        measured(n, subject=name, subject_size=size, hook=name,
                 fvu=float(np.exp(0.0 + (-0.4 + 0.02 * np.log(size)) * np.log(n) + 0.003 * random.normal())))
        for name, size in (("small", 10**6), ("medium", 10**7), ("large", 10**8))
        for n in (64, 256, 1024, 4096)
    ]  # fmt: skip
    [found] = fit("ls", rows)
    assert _preferred(found) == "pure"
    assert found.subject == "small, medium, large"
    assert _inside(found, "gamma", 0.02)
    assert found.coefficients["gamma"].value == pytest.approx(0.02, abs=0.004)
    assert any("-0.12" in note and "small" in note for note in found.notes)
    at_large = predict(LAWS[found.law], found, x=4096, subject_size=10**8)
    assert at_large.low < rows[-1].fvu < at_large.high  # type: ignore[operator]
