"""Spans of time as a person types them: 90s, 10m, 2h, 1.5d, 2 hours. One reading for every option that takes one."""

import re

SECONDS = {
    "s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0,
    "d": 86_400.0, "day": 86_400.0, "w": 604_800.0, "week": 604_800.0,
}  # fmt: skip
_SPAN = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", re.IGNORECASE)


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
