"""Numbers as text: fvu, counts, FLOPs, shares, intervals, jobs; a missing one is a dash."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Interval(NamedTuple):
    """A value and the 90% interval of its bootstrap."""

    value: float
    low: float
    high: float


NONE = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def rounded(value: float, number: int) -> float:
    """Return a number rounded to so many significant digits."""
    return float(f"{value:.{number}g}")


def digits(value: float | None, number: int = 3) -> str:
    """Write a number with so many significant digits and a true minus; a large or tiny one as 3.1×10¹³, a whole one
    without digits after the point: 2.00 is rounded to that, 2 is that.
    """
    if value is None or not math.isfinite(value):
        return NONE
    if value and not 1e-4 <= abs(value) < 1e6:
        return scientific(value, number)
    text = f"{value:.{number}g}"
    if "e" in text:
        text = f"{value:.0f}"
    elif value != round(value):
        text = f"{value:.{max(0, number - 1 - math.floor(math.log10(abs(float(text)))))}f}"
    return text.replace("-", "−")


def with_error(value: float, error: float | None) -> str:
    """Write an fvu with four digits after the point, and its standard error where that is known: 0.1793 ± 0.0012."""
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None and math.isfinite(error) else "")


def scientific(value: float | None, number: int = 2) -> str:
    """Write a number such as a FLOP count: 3.1×10¹³."""
    if value is None or not math.isfinite(value):
        return NONE
    mantissa, _, exponent = f"{value:.{number - 1}e}".partition("e")
    return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", "−")


def count(value: float | None) -> str:
    """Write a count with three digits: 412k, 1.05M."""
    if value is None or not math.isfinite(value):
        return NONE
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.{max(0, 2 - int(math.log10(abs(scaled) + 1e-9)))}f}{unit}"
    return f"{value:.0f}"


def whole(value: float | None) -> str:
    """Write a whole number with its thousands apart: 655,360."""
    return NONE if value is None or not math.isfinite(value) else f"{value:,.0f}"


def ratio(value: float | None) -> str:
    """Write an fvu with four digits after the point."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.4f}"


def share(value: float | None, places: int = 1) -> str:
    """Write a share in percent."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{places}%}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Write a time span with its two largest units: 4m10s."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    left = max(0, round(seconds))
    days, hours, minutes = left // 86_400, left // 3600 % 24, left // 60 % 60
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{left % 60:02}s" if minutes else f"{left}s"


def interval(value: Interval, number: int = 3) -> str:
    """Write a value with its interval, as far as it has one: −0.163 [−0.170, −0.155]."""
    text = digits(value.value, number)
    is_known = math.isfinite(value.low) or math.isfinite(value.high)
    return f"{text} [{digits(value.low, number)}, {digits(value.high, number)}]" if is_known else text


def named(number: int, word: str) -> str:
    """Write a number with its noun: 1 job, 2 jobs."""
    return f"{number:,} {word}" + ("" if number == 1 else "s")


def jobs_named(jobs: Sequence[int], *, most: int | None = None) -> str:
    """Write ids of jobs, only the first `most` of them: job 3; jobs 3, 7 and 2 more."""
    shown = jobs if most is None else jobs[:most]
    more = len(jobs) - len(shown)
    return f"job{'' if len(jobs) == 1 else 's'} {', '.join(map(str, shown))}" + (f" and {more} more" if more else "")


def tick(value: float) -> str:
    """Write a number beside an axis: 0.3, 512, 16,384, 200k."""
    if value >= 1e5:
        return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k"
    if value >= 1:
        return f"{value:,.0f}" if value == round(value) else f"{value:g}"
    return f"{value:g}".replace("-", "−")


def power_tick(value: float) -> str:
    """Write a FLOP count beside an axis: 10¹³, 3×10¹²."""
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return power if mantissa == "1" else f"{mantissa}×{power}"
