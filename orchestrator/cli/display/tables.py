"""Aligned text tables: columns that know how to print a row, and which to leave out when the terminal is narrow."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.cli import terminal
from orchestrator.masking import clean

Row = TypeVar("Row")
_INVISIBLE = re.compile(rf"[\x1b{terminal.ESCAPE}]\[[0-9;]*m")
GAP = 2
_HEAVY = 7
"""Columns of this weight stay as long as another can be cut for them."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table."""

    title: str
    cell: Callable[[Row], str]
    right: bool = False
    weight: int = 9
    """The lightest columns go first when there is no room."""
    least: int | None = None
    """Cells to which its texts may be cut before a column as heavy goes; None: it is never cut."""


def table(rows: Sequence[Row], columns: Sequence[Column[Row]], *, width: int | None) -> list[str]:
    """Return the lines of a table, its header first, no wider than `width`."""
    cells = {column.title: [clean(column.cell(row), lines=False) for row in rows] for column in columns}
    widths = {c.title: max(len(c.title), *map(visible, cells[c.title]), 0) for c in columns}
    kept = _fitting(columns, widths, width)
    cells |= {c.title: [cut(cell, widths[c.title]) for cell in cells[c.title]] for c in kept if c.least is not None}
    if kept and not kept[-1].right:
        widths[kept[-1].title] = 0
    head = [terminal.style(_padded(c.title, widths[c.title], c), dim=True, bold=True) for c in kept]
    body = [[_padded(cells[c.title][at], widths[c.title], c) for c in kept] for at in range(len(rows))]
    return [cut((" " * GAP).join(line).rstrip(), width) for line in (head, *body)]


def visible(text: str) -> int:
    """Return the cells a text takes on the terminal, colours and links left out."""
    return len(_INVISIBLE.sub("", text))


def cut(text: str, width: int | None) -> str:
    """Shorten a line that is too wide, and end it with an ellipsis."""
    if width is None or visible(text) <= width:
        return text
    kept, room, at = "", width - 1, 0
    while room and at < len(text):
        code = _INVISIBLE.match(text, at)
        kept += code[0] if code else text[at]
        at, room = (code.end(), room) if code else (at + 1, room - 1)
    return f"{kept}…" + (f"{terminal.ESCAPE}[0m" if _INVISIBLE.search(kept) else "")


def _fitting(columns: Sequence[Column[Row]], widths: dict[str, int], width: int | None) -> list[Column[Row]]:
    """Return the columns that there is room for; the width of one that may be cut becomes what is left for it."""
    kept = list(columns)
    while width is not None and len(kept) > 1:
        excess = sum(widths[c.title] + GAP for c in kept) - GAP - width
        lightest = min(reversed(kept), key=lambda column: column.weight)
        elastic = next((c for c in kept if c.least is not None and lightest.weight >= _HEAVY), None)
        if elastic is not None and elastic.least is not None:
            shrunk = min(excess, widths[elastic.title] - max(elastic.least, len(elastic.title)))
            widths[elastic.title] -= max(0, shrunk)
            excess -= max(0, shrunk)
        if excess <= 0:
            break
        kept.remove(lightest)
    return kept


def _padded(text: str, width: int, column: Column[Row]) -> str:
    space = " " * (width - visible(text))
    return space + text if column.right else text + space
