"""A drawing as SVG and PNG.

An SVG takes its colours from CSS variables (`--ink`, `--pen-1` ...): a page, or the reader's dark mode, decides.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

from orchestrator.scaling.plots.canvas import FAINT, GRID, INK, PAPER, PENS, Drawing, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LIGHT = {"ink": INK, "faint": FAINT, "grid": GRID, "paper": PAPER} | {
    f"pen-{at}": colour for at, colour in enumerate(PENS, 1)
}
_DARK = {
    "ink": "#e6e9ec", "faint": "#a0a7ae", "grid": "#3a4046", "paper": "#15181b", "pen-1": "#5db4f0", "pen-2": "#ff9147",
    "pen-3": "#34cfa0", "pen-4": "#eaa6ca", "pen-5": "#f6bd45", "pen-6": "#9bd8f7",
}  # fmt: skip
_PROLOG = '<?xml version="1.0" encoding="utf-8"?>\n'
_SPARED = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</defs>", re.S)
_METADATA = ("Date", "Creator", "Format", "Type")
JOINS = "svg * {stroke-linejoin: round; stroke-linecap: butt}"
"""The style that matplotlib writes into every figure; here a page has it once."""
_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"


def svg(drawing: Drawing, *, inline: bool) -> str:
    """Return a figure as SVG text.

    `inline`: for a page that sets the CSS variables and holds the rows `job-ID`: no prolog, no size. Else a file of its
    own, with both sets of colours and no links.
    """
    out = io.StringIO()
    with styled(drawing.name), _laid_out(drawing.figure):
        drawing.figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    *before, last = _SPARED.split(out.getvalue())  # a pattern that begins with white space is searched thrice as long
    text = "".join([*(part.rstrip() for part in before), last])
    text = text.replace(' target="_blank"', "")  # the rows are on the same page
    _prolog, head, body = re.split(r"(<svg [^>]*>)", text, maxsplit=1)
    body = _in_variables(body) if inline else _in_variables(_unlinked(body))
    body = _with_hints(_with_own_ids(body, f"figure-{drawing.name}"), drawing)
    head = head.replace("<svg ", f'<svg role="group" aria-label="{escape(drawing.title)}" ', 1)
    if inline:
        return re.sub(r' (width|height)="[^"]*"', "", head) + body
    colours = f"svg {{{css()}}} @media (prefers-color-scheme: dark) {{svg {{{css(dark=True)}}}}}"
    paper = f'<rect width="100%" height="100%" style="fill: {_variable("paper")}"/>'
    return f"{_PROLOG}{head}<style>{colours} {JOINS}</style>{paper}{body}"


def png(drawing: Drawing) -> bytes:
    """Return a figure as PNG, on paper, for where SVG cannot go."""
    out = io.BytesIO()
    with styled(drawing.name):
        drawing.figure.savefig(out, format="png", dpi=160, facecolor=PAPER)
    return out.getvalue()


@contextmanager
def _laid_out(figure: "Figure") -> Iterator[None]:
    """Lay a figure out for SVG, so that it is drawn once: `savefig` draws one that it lays out twice."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    canvas, engine, dpi = figure.canvas, figure.get_layout_engine(), figure.dpi
    if engine is None:
        yield
        return
    try:
        FigureCanvasSVG(figure)  # texts are as wide as in the file
        engine.execute(figure)
        figure.set_layout_engine(None)
        figure.set_dpi(dpi)
        yield
    finally:
        figure.set_layout_engine(engine)
        figure.set_dpi(dpi)
        figure.set_canvas(canvas)


def css(*, dark: bool = False) -> str:
    """Return the declarations of the CSS variables that figures read."""
    chosen = _DARK if dark else _LIGHT
    return " ".join(f"--{name}: {colour};" for name, colour in chosen.items())


def _variable(name: str) -> str:
    return f"var(--{name}, {_LIGHT[name]})"


def _in_variables(text: str) -> str:
    for name, colour in _LIGHT.items():
        text = text.replace(f": {colour}", f": {_variable(name)}")
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {_FONT}", text)
    return re.sub(r"(font: [^;\"]*?px )[^;\"]*", rf"\1{_FONT}", text)


def _unlinked(text: str) -> str:
    return re.sub(r'<a xlink:href="#[^"]*">|</a>', "", text)


def _with_own_ids(text: str, prefix: str) -> str:
    def renamed(found: "re.Match[str]") -> str:
        return f"{found[1]}{prefix}-{found[2]}"

    text = re.sub(r'(\bid=")([^"]+)', renamed, text)
    text = re.sub(r"(url\(#)([^)]+)", renamed, text)
    return re.sub(r'((?<!<a )xlink:href="#)([^"]+)', renamed, text)


def _with_hints(text: str, drawing: Drawing) -> str:
    def with_hint(found: "re.Match[str]") -> str:
        hint = drawing.hints.get(found[1])
        return found[0] if hint is None else f"{found[0]}<title>{escape(hint)}</title>"

    return re.sub(rf'<g id="figure-{re.escape(drawing.name)}-([^"]+)">', with_hint, text)
