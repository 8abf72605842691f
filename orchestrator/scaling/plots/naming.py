"""How jobs and fits are told apart in words: by what differs among those that are shown together."""

import re
from collections.abc import Sequence

from orchestrator.scaling.fit.options import GROUNDS
from orchestrator.scaling.types import Fit, JobMeasurement


def differing(items: Sequence[JobMeasurement] | Sequence[Fit]) -> tuple[str, ...]:
    """Return which of subject, hook point, text and activation tell items apart; none that an earlier one tells."""
    names: tuple[str, ...] = ()
    for name in GROUNDS:
        known = [item for item in items if getattr(item, name)]  # a fit may be of several, or not say
        if len({_values(item, (*names, name)) for item in known}) > len({_values(item, names) for item in known}):
            names = (*names, name)
    return names


def place(item: JobMeasurement | Fit, names: Sequence[str]) -> str:
    """Return what an item has of those: `gpt2, resid_post of block 3`."""
    return ", ".join(filter(None, _values(item, names)))


def in_order(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts texts by the numbers in them: block 2 before block 10, n = 128 before n = 2,048."""
    parts = re.split(r"(\d+(?:,\d{3})*)", text)
    return [(int(part.replace(",", "")) if part[:1].isdigit() else -1, part) for part in parts]


def _values(item: JobMeasurement | Fit, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(getattr(item, name)) for name in names)
