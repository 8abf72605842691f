"""The benchmark of the laws: every law that its jobs allow is timed, and finds what was planted."""

import pytest

from benchmarks.laws import planted_jobs, timed_fits


def test_every_law_that_one_learning_rate_allows_is_timed() -> None:
    *laws, whole = timed_fits(planted_jobs(seeds=1), refits=100)
    assert [row["law"] for row in laws] == ["ln", "lc", "lnk", "tn", "lnt"]
    assert whole["fits"] == sum(row["fits"] for row in laws)
    assert all(row["seconds"] > 0 for row in (*laws, whole))
    for row in laws:
        if row["planted"]:
            assert float(row["exponent"].split()[0]) == pytest.approx(float(row["planted"]), rel=0.2)
