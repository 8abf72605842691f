"""Tokens a second of a job: none while it says nothing, and the same for jobs of one stream."""

import pytest

from worker.rate import LEAST_SECONDS, WINDOW_SECONDS, Rate


def test_a_rate_waits_until_it_means_something() -> None:
    rate = Rate()
    told = [rate.at(second, int(1000 * second)) for second in range(21)]
    assert told[: int(LEAST_SECONDS)] == [None] * int(LEAST_SECONDS)
    assert told[int(LEAST_SECONDS) :] == [pytest.approx(1000.0)] * (21 - int(LEAST_SECONDS))


def test_bursts_of_a_stream_are_no_rate() -> None:
    """A window of 65,536 tokens is captured in 1.5 s and trained on in 0.5 s: jobs look at it at different moments."""
    rates = []
    for offset in (0.1, 0.6, 1.2, 1.7):
        rate, last = Rate(), None
        for second in range(30):
            at = second + offset
            trained = min(1.0, max(0.0, (at % 2 - 1.5) / 0.5))
            last = rate.at(at, int(65_536 * (at // 2 + trained)))
        rates.append(last)
    assert rates == [pytest.approx(32_768, rel=0.06)] * 4


def test_only_the_last_minute_counts() -> None:
    rate, told = Rate(), None
    for second in range(300):
        told = rate.at(float(second), 100 * min(second, 100) + 1000 * max(0, second - 100))
    assert told == pytest.approx(1000.0)
    assert WINDOW_SECONDS < 100
