"""Axes with ticks where a reader looks for them: log scales with few, round, plain numbers."""

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from orchestrator.scaling.numerals import tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Direction = Literal["x", "y"]
_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
_FEWEST, _MOST = 3, 7


def logarithmic(
    axes: "Axes", direction: Direction, label: str, *, values: Iterable[float] = (), pad: float = 0.06,
    write: Callable[[float], str] = tick,
) -> None:  # fmt: skip
    """Give an axis a log scale over `values` (and all that is drawn, without any), with round ticks.

    `pad`: share of the span that is left free at both ends.
    """
    getattr(axes, f"set_{direction}scale")("log")
    getattr(axes, f"set_{direction}label")(label)
    known = [value for value in values if value > 0 and math.isfinite(value)]
    if known:
        low, high = math.log(min(known)), math.log(max(known))
        free = max(pad * (high - low), 0.12 if high - low < 0.05 else 0.0)
        getattr(axes, f"set_{direction}lim")(math.exp(low - free), math.exp(high + free))
    _ticks(axes, direction, round_ticks(*getattr(axes, f"get_{direction}lim")()), write)


def at_sizes(axes: "Axes", sizes: Iterable[int], *, label: str = "n_latents n", most: int = _MOST) -> None:
    """Give the x axis a log scale with a tick at each size, as far as they fit."""
    known = sorted(set(sizes))
    logarithmic(axes, "x", label, values=known)
    if known:
        every = -(-len(known) // most)
        _ticks(axes, "x", [float(size) for size in known[::-1][::every]], tick)


def linear(axes: "Axes", direction: Direction, label: str, write: Callable[[float], str]) -> None:
    """Give an axis plain ticks with numbers in words of one's own."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    getattr(axes, f"set_{direction}label")(label)
    axis = getattr(axes, f"{direction}axis")
    axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))


def round_ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers between two, for a log scale."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        found = [step * 10.0**power for power in decades for step in steps if low <= step * 10.0**power <= high]
        if len(found) >= _FEWEST:
            return found[:: -(-len(found) // _MOST)]
    span = 10.0 ** math.floor(math.log10(high - low)) if high > low else low
    step = next(part * span for part in (1.0, 0.5, 0.25, 0.2, 0.1) if (high - low) / (part * span) >= _FEWEST)
    return [at * step for at in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _ticks(axes: "Axes", direction: Direction, places: list[float], write: Callable[[float], str]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis = getattr(axes, f"{direction}axis")
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter([write(round(place, 12)) for place in places]))
    axis.set_minor_locator(NullLocator())
