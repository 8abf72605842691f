"""Matplotlib figures without global state, whose points name their jobs: figures, series styles and axes.

A `Sheet` is one figure in the making, a `Pen` the style of one series. Colours are Okabe and Ito's, each with a marker
and a line style of its own, so that no series is told by its colour alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import chain, count
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from orchestrator.formatting import tick
from orchestrator.masking import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Direction = Literal["x", "y"]

INK, FAINT, GRID, PAPER = "#1c2024", "#63696f", "#d9dde1", "#fdfdfe"
PENS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS, _LINES = "osD^vPX", ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)))
_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
"""Digits of the ticks of a decade, the coarsest first."""
_FEWEST_TICKS, _MOST_TICKS = 3, 7
_MOST_LAYERS = 8
_FEW_PANELS = 9
_LETTERS, _LEGEND_LETTERS = 10, 32
"""Letters of a title on an inch; letters of a line in a legend."""


class Pen(NamedTuple):
    """The style of one series: colour, marker and line."""

    colour: str
    marker: str
    line: Any
    hollow: bool = False
    """Whether a point is a ring."""


class Drawing(NamedTuple):
    """A finished figure with its title and caption."""

    name: str
    title: str
    caption: str
    figure: "Figure"
    hints: dict[str, str]
    """What a reader sees on pointing at a part of it, by the part's id."""
    jobs: tuple[int, ...]
    """Every job that is drawn by itself."""
    sampled: str = ""
    """Of how many others not all are, such as `200 of 5,000 curves shown`; empty: all are drawn."""


class Sheet:
    """A figure that is being drawn: its panels, and the hints and jobs of what was drawn so far."""

    def __init__(self, name: str, *, panels: int = 1, wide: bool = False, columns: int = 3) -> None:
        """Lay out so many panels, at most `columns` of them in a row; four, where they are many."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        from orchestrator.scaling.plots.points import Points

        self.name, self._hints, self._jobs = name, dict[str, str](), set[int]()
        self.columns = min(panels, columns if panels <= _FEW_PANELS else 4)
        if (panels, columns) == (4, 3):
            self.columns = 2
        n_rows = -(-panels // self.columns)
        size = (11.5 if wide or panels > 1 else 6.4, 3.9 if n_rows == 1 else 3.3 * n_rows)
        self.figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(self.figure)
        laid: list[Axes] = list(self.figure.subplots(n_rows, self.columns, squeeze=False).flat)
        self.panels = laid[:panels]
        for spare in laid[panels:]:
            spare.remove()
        self._points = [Points() for _ in self.panels]
        for axes, points in zip(self.panels, self._points, strict=True):
            axes.add_artist(points)

    def point(self, at: tuple[float, float], pen: Pen, *, jobs: Sequence[int], hint: str, panel: int = 0,
              hollow: bool = False) -> None:  # fmt: skip
        """Draw one point that names its jobs, and links to the first of them."""
        gid = self._id("point", jobs, hint)
        face = PAPER if hollow or pen.hollow else pen.colour
        url = f"#job-{jobs[0]}" if jobs else None
        self._points[panel].add(at, marker=pen.marker, edge=pen.colour, face=face, gid=gid, url=url)

    def mark(self, artist: Any, kind: str, *, jobs: Sequence[int], hint: str) -> None:
        """Give a part of the figure an id, a hint and a link to the row of its first job."""
        artist.set_gid(self._id(kind, jobs, hint))
        if jobs:
            artist.set_url(f"#job-{jobs[0]}")

    def _id(self, kind: str, jobs: Sequence[int], hint: str) -> str:
        """Return an id for a part that names some jobs, and keep both with its hint."""
        first = f"{kind}-{'-'.join(map(str, jobs[:4])) or 'none'}"
        candidates = chain([first], (f"{first}-{at}" for at in count(2)))
        own = next(name for name in candidates if name not in self._hints)
        self._hints[own] = clean(hint)
        self._jobs.update(jobs)
        return own

    def title(self, text: str, *, panel: int = 0) -> None:
        """Head a panel; a long text goes on in a second line."""
        width = int(_LETTERS * self.figure.get_figwidth() / self.columns)
        self.panels[panel].set_title(_wrapped(text, width), loc="left")

    def legend(self, entries: Sequence[tuple[str, Pen]]) -> None:
        """Name the pens beside the panels, where no data can be."""
        from matplotlib.lines import Line2D

        if entries:
            handles = [
                Line2D(
                    [], [], color=pen.colour, marker=pen.marker or "none", linestyle=pen.line, markersize=5.5,
                    markerfacecolor=PAPER if pen.hollow else pen.colour,
                )
                for _, pen in entries
            ]  # fmt: skip
            names = [_wrapped(name, _LEGEND_LETTERS) for name, _ in entries]
            self.figure.legend(handles, names, framealpha=0.0, loc="outside right upper")

    def done(self, title: str, caption: str, *, sampled: str = "") -> Drawing:
        """Return what was drawn; `sampled` says of what only a sample was."""
        jobs = tuple(sorted(self._jobs))
        return Drawing(self.name, clean(title), clean(caption), self.figure, dict(self._hints), jobs, sampled)


def pen(index: int) -> Pen:
    """Return the pen of a series; colours come again after six, with another marker and line."""
    return Pen(PENS[index % len(PENS)], _MARKERS[index % len(_MARKERS)], _LINES[index % len(_LINES)])


def pens(keys: Iterable[Any]) -> dict[Any, Pen]:
    """Return a pen for each of some keys, in their order."""
    return {key: pen(at) for at, key in enumerate(dict.fromkeys(keys))}


def styled(name: str) -> AbstractContextManager[None]:
    """Return a context in which matplotlib draws and writes in the style of our figures; outside it nothing changes."""
    from matplotlib import rc_context

    return rc_context(
        {
            "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"], "font.size": 10, "text.color": INK,
            "axes.labelcolor": INK, "axes.edgecolor": FAINT, "axes.titlesize": 10.5,
            "axes.labelsize": 10.5, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK,
            "ytick.labelcolor": INK, "grid.color": GRID, "grid.linewidth": 0.7, "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False, "axes.spines.right": False, "legend.fontsize": 9.5,
            "axes.facecolor": "none", "text.parse_math": False,
        }
    )  # fmt: skip


def logarithmic(
    axes: "Axes", direction: Direction, label: str, *, values: Iterable[float] = (), pad: float = 0.06,
    write: Callable[[float], str] = tick,
) -> None:  # fmt: skip
    """Give an axis a log scale with round ticks, over `values` or, without any, over all that is drawn.

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


def at_sizes(axes: "Axes", sizes: Iterable[int], *, label: str = "n_latents n", most: int = _MOST_TICKS) -> None:
    """Give the x axis a log scale with a tick at each size, as far as they fit."""
    known = sorted(set(sizes))
    logarithmic(axes, "x", label, values=known)
    if known:
        every = -(-len(known) // most)
        _ticks(axes, "x", [float(size) for size in known[::-1][::every]], tick)


def at_layers(axes: "Axes", direction: Direction, layers: Iterable[int], label: str) -> None:
    """Give an axis a tick at layers of a model, as far as they fit."""
    known = sorted(set(layers))
    getattr(axes, f"set_{direction}ticks")(known[:: max(1, -(-len(known) // _MOST_LAYERS))])
    getattr(axes, f"set_{direction}label")(label)


def linear(axes: "Axes", direction: Direction, label: str, write: Callable[[float], str]) -> None:
    """Give an axis a linear scale whose ticks are written by `write`."""
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
        if len(found) >= _FEWEST_TICKS:
            return found[:: -(-len(found) // _MOST_TICKS)]
    span = 10.0 ** math.floor(math.log10(high - low)) if high > low else low
    step = next(
        part * span for part in (5.0, 2.5, 1.0, 0.5, 0.25, 0.1) if (high - low) / (part * span) >= _FEWEST_TICKS
    )
    return [at * step for at in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _wrapped(text: str, width: int) -> str:
    """Break a text into lines, not beside an equals sign."""
    return "\n".join(wrap(clean(text).replace(" = ", "\u00a0=\u00a0"), width)).replace("\u00a0", " ")


def _ticks(axes: "Axes", direction: Direction, places: list[float], write: Callable[[float], str]) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    axis = getattr(axes, f"{direction}axis")
    axis.set_major_locator(FixedLocator(places))
    axis.set_major_formatter(FixedFormatter([write(round(place, 12)) for place in places]))
    axis.set_minor_locator(NullLocator())
