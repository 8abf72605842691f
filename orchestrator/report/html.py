"""HTML, escaped by construction: a plain text can never become markup, nor show a secret."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from orchestrator.formatting import NONE, Interval, digits, interval
from orchestrator.masking import clean

_MOST_LINKS = 100


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


class Head(NamedTuple):
    """The head of a column."""

    title: str
    right: bool = True
    """Numbers stand to the right."""
    help: str = ""


def element(tag: str, *children: str, **attributes: str | None) -> Html:
    """Return an element; children that are not Html are escaped. `class_` and `for_` lose their line."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{named}>{join(children)}</{tag}>")


def join(children: Iterable[str], between: str = "") -> Html:
    """Return children one after another, escaped where they are plain."""
    return Html(escaped(between).join(escaped(child) for child in children))


def escaped(child: str) -> Html:
    """Return a child as markup."""
    return child if isinstance(child, Html) else Html(escape(clean(child)))


def number(text: str, value: float | None) -> Html:
    """Return a number as a reader sees it, with its exact value for who points at it, and for sorting."""
    return escaped(text) if value is None else element("data", text, value=f"{value:.17g}", title=f"{value:.10g}")


def score_cell(found: Interval | None, *, is_short: bool = False) -> Html:
    """Return a score with its interval, which a short one shows to who points at it; a dash where there is none."""
    if found is None or not math.isfinite(found.value):
        return Html(NONE)
    if is_short:
        return element("data", digits(found.value), value=f"{found.value:.17g}", title=interval(found))
    return number(interval(found), found.value)


def job_links(jobs: Sequence[int]) -> Html:
    """Return links to the rows of jobs, of very many to the first."""
    links = [element("a", str(job), href=f"#job-{job}") for job in jobs[:_MOST_LINKS]]
    more = [f"and {len(jobs) - _MOST_LINKS:,} more"] if len(jobs) > _MOST_LINKS else []
    return join([*links, *more], ", ") if jobs else Html("–")


def grid(heads: Sequence[Head], rows: Iterable[tuple[str | None, Sequence[str]]], *, class_: str = "") -> Html:
    """Return a table, in a box of its own that scrolls; each row is (its id, its cells)."""
    head = element("tr", *(_head(one) for one in heads))
    body = join([element("tr", *_cells(heads, cells), id=own) for own, cells in rows], "\n")
    inner = element("table", element("thead", head), element("tbody", body), class_=class_ or None)
    return element("div", inner, class_="scroll")


def _head(head: Head) -> Html:
    return element("th", head.title, scope="col", class_="right" if head.right else None, title=head.help or None)


def _cells(heads: Sequence[Head], cells: Sequence[str]) -> list[Html]:
    pairs = zip(heads, cells, strict=True)
    return [element("td", cell, class_="right" if head.right else None) for head, cell in pairs]
