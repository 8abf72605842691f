"""Masking: what spares most texts the rules takes none from them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.masking import _MAY_HOLD, _RULES, HIDDEN, mask


@pytest.mark.parametrize("rule", [pattern for pattern, _ in _RULES], ids=lambda rule: str(rule.pattern)[:20])
def test_no_text_that_a_rule_matches_is_spared_the_rules(rule: re.Pattern[str]) -> None:
    @given(st.from_regex(rule))
    def is_read(text: str) -> None:
        assert _MAY_HOLD.search(text)

    is_read()


def test_what_a_point_of_a_figure_says_is_spared_them() -> None:
    hint = "job 12: 0.4393, by the law 0.4401 (n = 64, k = 8; off-trend: the smallest n, not fitted)"
    assert not _MAY_HOLD.search(hint)
    assert mask(f"{hint} https://me:hush5f3a@host") == f"{hint} https://me:{HIDDEN}@host"
