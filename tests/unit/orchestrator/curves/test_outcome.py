"""How a job ends, by its curve and config."""

from typing import Any

import pytest

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.curves.outcome import at_constant_rate, outcome_of, reference_fvu
from orchestrator.curves.point import evaluation_grid

BUDGET = 2**21
GRID = evaluation_grid(first_point_tokens=8192, batch_tokens=256, max_tokens=BUDGET)
Curve = list[tuple[int, float]]


def _config(**parts: Any) -> JobConfig:
    training = {"batch_tokens": 256, "shuffle_tokens": 1024, "max_tokens": BUDGET}
    return parse({"training": training, "sae": {"n_latents": 64, "k": 8}, **parts})


def _flat(fvu: float) -> Curve:
    return [(t, fvu * (1 + 0.1 * (t / GRID[0]) ** -1.0)) for t in GRID]


def _end(curve: Curve, config: JobConfig, untrained: float | None = 1.144) -> tuple[str, int]:
    """Return the outcome of a job that is asked after every point, and where that is."""
    for end in range(1, len(curve) + 1):
        seen = curve[end - 1][0]
        if found := outcome_of(curve[:end], config, untrained_fvu=untrained, tokens_seen=seen):
            return found, seen
    raise AssertionError("it never ends")


def test_a_plateau_converges_early() -> None:
    outcome, seen = _end(_flat(0.3), _config())
    assert outcome == "converged"
    assert seen < BUDGET


@pytest.mark.parametrize("fvu", [1.14, 0.95])
def test_what_hardly_learns_trains_on_and_is_not_learning(fvu: float) -> None:
    """A rate of 1e-6 once converged at 11% of the budget, as flat as an SAE that is done."""
    curve: Curve = [(t, fvu) for t in GRID]
    assert _end(curve, _config()) == ("not_learning", BUDGET)
    assert _end(curve, _config(stop={"rule": "max_tokens"})) == ("not_learning", BUDGET)


def test_a_warm_up_is_no_plateau() -> None:
    curve = [(t, 0.5 if t < 2**17 else 0.5 * (t / 2**17) ** -0.3) for t in GRID]
    assert _end(curve, _config())[0] == "converged"
    assert _end(curve, _config(optimizer={"warmup_tokens": 2**17})) == ("max_tokens", BUDGET)


def test_with_a_decay_the_whole_budget_is_trained_and_the_constant_rate_judged() -> None:
    decays = _config(optimizer={"decay_tokens": 2**19})
    flat_before = [(t, 0.3 if t <= BUDGET - 2**19 else 0.25) for t in GRID]
    assert _end(flat_before, decays) == ("converged", BUDGET)
    falling = [(t, max(0.2, 0.8 * (t / GRID[0]) ** -0.2) if t <= BUDGET - 2**19 else 0.25) for t in GRID]
    assert _end(falling, decays) == ("max_tokens", BUDGET)
    assert max(t for t, _ in at_constant_rate(falling, decays)) <= BUDGET - 2**19


def test_a_loss_above_the_untrained_one_diverges() -> None:
    assert _end([(t, 2e6) for t in GRID], _config(), 0.36) == ("diverged", GRID[8])  # the third after 1% of it


@pytest.mark.parametrize(
    ("activation", "expected"),
    [("topk", 0.3), ("multi_topk", 0.3), ("batchtopk", 1.0), ("relu", 1.0), ("jumprelu", 1.0)],
)
def test_only_where_training_keeps_l0_are_untrained_weights_a_measure(activation: str, expected: float) -> None:
    """A ReLU SAE begins dense: its penalty may well raise the fvu above the untrained one."""
    config = _config(sae={"n_latents": 64, "k": 8, "activation": activation})
    assert reference_fvu(config, 0.3) == expected
    assert reference_fvu(config, None) is None
    assert reference_fvu(config, float("nan")) is None


def test_without_a_curve_a_spent_budget_is_a_spent_budget() -> None:
    assert outcome_of([], _config(), untrained_fvu=None, tokens_seen=BUDGET) == "max_tokens"
    assert outcome_of([], _config(), untrained_fvu=None, tokens_seen=10) is None
