"""Short ways to read figures in tests: what was drawn, in the units of its axes."""

import math
import re
from xml.etree import ElementTree

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
Element = ElementTree.Element


def parsed(text: str) -> Element:
    return ElementTree.fromstring(text)


def groups(root: Element, ending: str) -> dict[str, Element]:
    """Return the groups whose id, after the figure's name, matches a pattern."""
    found = {group.get("id") or "": group for group in root.iter(f"{SVG}g")}
    return {name: group for name, group in found.items() if re.fullmatch(rf"figure-[a-z-]+?-{ending}", name)}


def place(group: Element) -> tuple[float, float]:
    """Return where a marker stands, in the units of the paper."""
    use = next(group.iter(f"{SVG}use"))
    return float(use.get("x") or 0), float(use.get("y") or 0)


def text_of(group: Element) -> str:
    return "".join("".join(text.itertext()) for text in group.iter(f"{SVG}text"))


def value_at(root: Element, position: float, direction: str) -> float:
    """Return what a log axis says of a position, by the two outermost ticks of its first panel."""
    ticks = []
    for tick in groups(root, rf"{direction}tick_\d+").values():
        ticks.append((place(tick)["xy".index(direction)], math.log(number(text_of(tick)))))
        if direction == "x" and len(ticks) > 1 and ticks[-1][0] < ticks[-2][0]:
            break  # the next panel
    (low, log_low), (high, log_high) = min(ticks), max(ticks)
    return math.exp(log_low + (position - low) / (high - low) * (log_high - log_low))


def number(text: str) -> float:
    units = {"k": 1e3, "M": 1e6}
    plain = text.replace(",", "").replace("−", "-")
    return float(plain[:-1]) * units[plain[-1]] if plain[-1] in units else float(plain)
