"""Apply the overrides typed behind a sweep file: key=value, key=value,value, key=log(1e-4,1e-3,3), ~key."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import ConfigError
from orchestrator.sweep.assignments import FIELDS, GROUPS, Assignments, assign, check_key
from orchestrator.sweep.points import Axis, axis_of, values_of, without
from orchestrator.sweep.ranges import is_range
from orchestrator.sweep.yaml_source import Node, parse_text

_CALL = re.compile(r"(\w+)\((.*)\)", re.DOTALL)
_NUMBERS = re.compile(r"[-+\d.,eE\s_]+")
_OPEN, _CLOSE = "([{", ")]}"
_NOT_YAML = tuple("*&!%@`|>#")  # an override that starts so is a path, a pattern or a name, never YAML syntax
_Change = tuple[set[str], Assignments, Axis | None]
"""The keys an override takes out, and the values or the axis it puts in."""

_HINT = "Write key=value, key=value,value, key=log(1e-4,1e-3,3) or ~key."


def apply(
    texts: Sequence[str], fixed: Assignments, axes: list[Axis], *, folders: tuple[Path, ...]
) -> tuple[Assignments, list[Axis]]:
    """Return fixed values and axes after the overrides, taken in order; an overridden key leaves its block.

    Several values make another axis behind the others, ~key gives a key back to its default.

    Raises:
        ConfigError: an unknown key, or a text of another form.
    """
    for text in texts:
        location = f"override {text!r}"
        if text.startswith("~"):
            names, given, axis = _dropped(text[1:].strip(), location)
        else:
            names, given, axis = _given(text, location, folders)
        axes = without(axes, names.__contains__)
        if axis:
            axes = [*axes, axis]
        else:
            fixed = {key: value for key, value in fixed.items() if key not in names} | given
    return fixed, axes


def listed(text: str, location: str) -> list[Any]:
    """Return the values of a list as it is typed behind a key: `1,2`, `pow2(10,14)` or `{pow2: [10, 14]}`.

    Raises:
        ConfigError: a text of another form.
    """
    return [node.plain() for item in _split(text) for node in _values(item.strip(), location)]


def _dropped(key: str, location: str) -> _Change:
    group = {field for field in FIELDS if field.startswith(f"{key}.")}
    return group if key in GROUPS else {check_key(key, location)}, {}, None


def _given(text: str, location: str, folders: tuple[Path, ...]) -> _Change:
    written, equals, rest = text.lstrip("+").partition("=")
    if not equals:
        raise ConfigError(f"{location} has no '='", hint=_HINT)
    key = written.strip()
    values = [node for item in _split(rest) for node in _values(item.strip(), location, is_group=key in GROUPS)]
    if len(values) > 1:
        return {check_key(key, location)}, {}, axis_of(key, values, folders)
    given = assign({key: values[0]}, folders)
    return set(given), given, None


def _values(item: str, location: str, *, is_group: bool = False) -> list[Node]:
    if not item:
        raise ConfigError(f"{location}: a value is missing", hint=f"{_HINT} For nothing, write null.")
    call = _CALL.fullmatch(item)
    if call and (is_range([call[1]]) or _NUMBERS.fullmatch(call[2])):
        numbers = parse_text(f"[{call[2]}]", location, lines=False)
        return values_of(Node({call[1]: numbers}, location))
    node = Node(item, location) if item.startswith(_NOT_YAML) else parse_text(item, location, lines=False)
    if isinstance(node.value, dict) and not is_group:
        return values_of(node)
    return [node]


def _split(text: str) -> Iterator[str]:
    """Yield the parts between commas that stand in no bracket and no quotes."""
    depth, quote, start = 0, "", 0
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[i - 1 : i] != "\\" else quote
        elif character in "'\"" and (depth or not text[start:i].strip()):
            quote = character
        elif character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
        elif character == "," and depth <= 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]
