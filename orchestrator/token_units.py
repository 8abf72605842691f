"""Numbers of tokens as a person types them: 50M, 1.5B, 200k, 5e7. One reading for options and sweep files."""

import re
from decimal import Decimal

_TIMES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_COUNT = re.compile(rf"\s*(\d[\d_]*(?:\.\d+)?(?:e\d{{1,3}})?)([{''.join(_TIMES)}]?)\s*")
_MOST = 2**53


def token_count(text: str) -> int | None:
    """Return the tokens of a text; None where it is no whole number of them, 0, or above 2^53."""
    found = _COUNT.fullmatch(text)
    tokens = Decimal(found[1]) * _TIMES[found[2]] if found else Decimal(0)
    return int(tokens) if 0 < tokens <= _MOST and tokens == int(tokens) else None
