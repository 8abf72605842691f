"""When the training of a lens ends, and as what."""

import math

from orchestrator.config.lens.reading import parse_lens
from orchestrator.curves.lens_curve import lens_outcome, mean_kl

CONFIG = parse_lens({"training": {"max_tokens": 2**20}})
FALLING = [(int(1024 * 2 ** (i / 4)), 0.1 + 2.0 / (i + 1)) for i in range(40)]
FLAT = [(int(1024 * 2 ** (i / 4)), 0.2 + 1e-5 * (i % 2)) for i in range(30)]


def outcome(points: list[tuple[int, float]], *, logit_lens_kl: float = 2.5) -> str | None:
    return lens_outcome(points, CONFIG, logit_lens_kl=logit_lens_kl, tokens_seen=points[-1][0])


def test_it_goes_on_while_it_falls_and_ends_where_it_is_flat_or_has_used_its_budget() -> None:
    assert outcome(FALLING[:30]) is None
    assert outcome(FLAT) == "converged"
    whole = parse_lens({"training": {"max_tokens": 2**20}, "stop": {"rule": "max_tokens"}})
    assert lens_outcome(FLAT, whole, logit_lens_kl=2.5, tokens_seen=FLAT[-1][0]) is None
    assert lens_outcome(FALLING, CONFIG, logit_lens_kl=2.5, tokens_seen=2**20) == "max_tokens"
    assert lens_outcome([], CONFIG, logit_lens_kl=2.5, tokens_seen=0) is None


def test_a_curve_as_flat_as_the_logit_lens_has_learnt_nothing() -> None:
    assert outcome(FLAT, logit_lens_kl=0.21) is None, "flat at what it began with is no convergence"
    assert lens_outcome(FLAT, CONFIG, logit_lens_kl=0.21, tokens_seen=2**20) == "not_learning"


def test_it_diverges_above_the_logit_lens_or_where_it_is_not_finite() -> None:
    assert outcome([(2**16, 0.5), (2**17, math.nan)]) == "diverged"
    rising = [(2**14 * (i + 1), 3.0) for i in range(12)]
    assert outcome(rising) == "diverged"


def test_the_mean_leaves_out_the_last_layer_which_is_nothing_for_every_lens() -> None:
    assert mean_kl([3.0, 1.0, 0.0]) == 2.0
