"""The rule that leads the weight of a penalty: bounded, on the scale of the tokens, at rest on its target."""

import math

import pytest
import torch

from worker.sae.sparsity_control import SparsityControl


def control() -> SparsityControl:
    found = SparsityControl(16, device="cpu")
    found.start(0.1)
    return found


def follow(found: SparsityControl, l0: float, tokens_seen: int) -> float:
    found.follow(torch.tensor(l0), n_tokens=1024, tokens_seen=tokens_seen)
    return float(found.coef)


def test_on_its_target_it_rests() -> None:
    assert follow(control(), 16.0, 1024) == pytest.approx(0.1)


@pytest.mark.parametrize(("l0", "sign"), [(32.0, 1), (1e9, 1), (8.0, -1), (0.0, -1)])
def test_one_step_is_bounded(l0: float, sign: int) -> None:
    found = control()
    first = math.log(follow(found, l0, 1024) / 0.1)
    assert 0 < sign * first <= 0.55 + 1e-6
    assert 0 < sign * math.log(follow(found, l0, 2048) * math.exp(-first) / 0.1) <= 0.05 + 1e-6


def test_late_steps_are_small() -> None:
    early, late = control(), control()
    for tokens_seen, found in ((1024, early), (2**24, late)):
        for _ in range(2):
            follow(found, 32.0, tokens_seen)
        follow(found, 16.0, tokens_seen)
    assert math.log(float(late.coef) / 0.1) < 0.02 * math.log(float(early.coef) / 0.1)
