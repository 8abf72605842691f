"""Numbers as a person types them: 90s, 10m, 2 hours; 50M, 1.5B, 200k; ids of rows. One reading for every place."""

import re
from decimal import Decimal

SECONDS = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0,
    "d": 86_400.0, "day": 86_400.0, "w": 604_800.0, "week": 604_800.0,
}  # fmt: skip
_SPAN = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", re.IGNORECASE)
_TIMES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_COUNT = re.compile(rf"\s*(\d[\d_]*(?:\.\d+)?(?:e\d{{1,3}})?)([{''.join(_TIMES)}]?)\s*")
_MOST = 2**53
_LARGEST_ID = 2**31 - 1
"""What a column of ids holds on PostgreSQL; a larger number in a query is an error there, above 2^63 in SQLite too."""


def is_number(text: str) -> bool:
    """Say whether a text is nothing but the digits 0 to 9, as an id is."""
    return text.isascii() and text.isdigit()


def row_id(text: str) -> int | None:
    """Return the id of a row that a text is; None where it is no number, or larger than any id."""
    digits = text.lstrip("0") or "0"
    if not is_number(text) or len(digits) > len(str(_LARGEST_ID)):
        return None
    return int(digits) if int(digits) <= _LARGEST_ID else None


def unit_seconds(word: str) -> float | None:
    """Return the seconds of a unit, singular or plural; None where it is none."""
    known = word.lower()
    return SECONDS.get(known) or SECONDS.get(known.removesuffix("s"))


def span_seconds(text: str) -> float | None:
    """Return the seconds of a span; a bare number is seconds. None where it is no span of time."""
    found = _SPAN.fullmatch(text)
    if found is None:
        return None
    unit = unit_seconds(found[2] or "s")
    return None if unit is None else float(found[1]) * unit


def token_count(text: str) -> int | None:
    """Return the tokens of a text; None where it is no whole number of them, 0, or above 2^53."""
    found = _COUNT.fullmatch(text)
    tokens = Decimal(found[1]) * _TIMES[found[2]] if found else Decimal(0)
    return int(tokens) if 0 < tokens <= _MOST and tokens == int(tokens) else None
