"""A share of dead latents is one only after the dead window."""

import math

import pytest

from orchestrator.config.validation import parse
from orchestrator.results.auto_values import can_measure, dead_window, measured_share, stored_window


@pytest.mark.parametrize(
    ("share", "tokens", "window", "shown"),
    [
        (0.0, 4096, 4096, None),  # nobody can have been silent for more than 4096 of 4096 tokens
        (0.0, 4097, 4096, 0.0),
        (0.0, 100, 10_000_000, None),
        (0.0, None, 10_000_000, None),
        (0.125, 100, 10_000_000, 0.125),  # found dead: the window had passed
        (None, 5000, 4096, None),
        (0.0, 100, None, 0.0),
    ],
)
def test_what_is_shown(share: float | None, tokens: int | None, window: int | None, shown: float | None) -> None:
    assert measured_share(share, tokens, window) == shown


def test_what_was_not_finite_stays() -> None:
    assert math.isnan(measured_share(math.nan, 100, 4096) or 0.0)


@pytest.mark.parametrize(("window", "is_measured"), [(99_999, True), (100_000, False), (10_000_000, False)])
def test_whether_a_budget_can_measure(window: int, is_measured: bool) -> None:
    values = {"max_tokens": 100_000, "dead_after_tokens": window}
    config = parse({"sae": {"n_latents": 64}, "training": values})
    assert can_measure(config, 64) == is_measured
    assert stored_window(config.canonical_json(), 64) == window


@pytest.mark.parametrize("sae", [{"n_latents": 64}, {"expansion": 16}, {}])
@pytest.mark.parametrize("given", ["auto", 4096])
@pytest.mark.parametrize("d_model", [None, 64])
def test_a_config_and_its_text_have_one_window(sae: dict[str, int], given: str | int, d_model: int | None) -> None:
    config = parse({"sae": sae, "training": {"max_tokens": 100_000, "dead_after_tokens": given}})
    window = dead_window(config, d_model)
    assert window == stored_window(config.canonical_json(), d_model)
    is_unknown = given == "auto" and d_model is None and "n_latents" not in sae
    assert (window is None) == is_unknown
    assert is_unknown or window == config.dead_after_tokens(d_model or 64)
