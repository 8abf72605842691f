"""A budget as a person types it: `200 GPU-hours`, `3h`, `1e18 FLOPs`."""

import re
from typing import Literal, NamedTuple

from orchestrator.errors import ConfigError
from orchestrator.units import unit_seconds

_FORM = re.compile(
    r"\s*([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?)\s*(?:(gpu|cpu|device)[- ]?)?([a-z]+)\s*", re.IGNORECASE
)


class Allowance(NamedTuple):
    """How much a plan may use."""

    amount: float
    unit: Literal["seconds", "FLOPs"]
    """Seconds of one device, or executed FLOPs with the subject's."""
    device: str | None = None
    """gpu or cpu, where the person said so."""


def allowance(text: str) -> Allowance:
    """Read a budget.

    Raises:
        ConfigError: not an amount above 0 of hours or FLOPs.
    """
    found = _FORM.fullmatch(text)
    amount, device, word = (float(found[1]), found[2], found[3].lower()) if found else (0.0, None, "")
    if amount <= 0 or amount == float("inf"):
        raise _unreadable(text)
    if word in {"flop", "flops"} and device is None:
        return Allowance(amount, "FLOPs")
    seconds = unit_seconds(word)
    if seconds is None:
        raise _unreadable(text)
    return Allowance(amount * seconds, "seconds", device.lower() if device else None)


def _unreadable(text: str) -> ConfigError:
    return ConfigError(
        f"the budget {text!r} is no amount of time or FLOPs",
        hint='Write an amount above 0 with its unit: "200 GPU-hours", 3h, 90m or "1e18 FLOPs".',
    )
