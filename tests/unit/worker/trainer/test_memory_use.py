"""What a trainer held at most, against what was expected: only a large miss is told."""

import torch

from orchestrator.config.validation import parse
from orchestrator.estimates.memory import trainer_bytes
from worker.trainer.memory_use import missed_by_much, peak_bytes

CONFIG = parse({"subject": {"model": "synthetic:gaussian?d_model=64"}, "sae": {"n_latents": 512, "k": 8}})


def test_the_peak_grows_with_what_is_held() -> None:
    before = peak_bytes("cpu")
    held = torch.ones(before // 4 + (64 << 20))
    after = peak_bytes("cpu")
    assert after - before >= 64 << 20
    assert after < 4 * before + held.nbytes


def test_a_large_miss_is_told_with_both_numbers() -> None:
    expected = trainer_bytes([CONFIG, CONFIG])
    assert missed_by_much([CONFIG, CONFIG], "cpu", expected) is None
    assert missed_by_much([CONFIG, CONFIG], "cpu", int(1.05 * expected)) is None
    more = missed_by_much([CONFIG, CONFIG], "cpu", 3 * expected) or ""
    assert "were expected of 2 jobs" in more
    assert "on cpu" in more
    assert missed_by_much([CONFIG, CONFIG], "cpu", expected // 4) is not None
    assert missed_by_much([CONFIG], "cuda:0", trainer_bytes([CONFIG], kind="cuda")) is None
