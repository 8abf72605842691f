"""Blocks of a sweep -> axes: each axis a list of points, each point the values of the keys it varies."""

from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.sweep.assignments import Assignment, Assignments, dotted_keys, entries, read_value
from orchestrator.sweep.ranges import is_range, range_forms, spread, unknown_range
from orchestrator.sweep.yaml_source import Node

Axis = tuple[Assignments, ...]
"""What varies together; the axes of a sweep multiply, the first slowest."""

_FORMS = "Write - grid: {key: [values]}, - zip: {key: [values], ...} or - list: [{key: value}, ...]."


def read_axes(node: Node | None, folder: Path) -> list[Axis]:
    """Return the axes of the `sweep` entry, a grid giving one axis per key.

    Raises:
        ConfigError: a block of another form, lists of unequal length, or a key in two blocks.
    """
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, list):
        raise ConfigError(f"{node.location}: sweep must be a list of blocks", hint=_FORMS)
    axes = [axis for block in node.value for axis in _block(block, folder)]
    seen: dict[str, str] = {}
    for axis in axes:
        for key, location in {key: found.location for point in axis for key, found in point.items()}.items():
            if key in seen:
                raise ConfigError(f"{location}: {key!r} is varied twice", hint=f"It is varied already at {seen[key]}.")
        seen |= {key: found.location for point in axis for key, found in point.items()}
    return axes


def values_of(node: Node) -> list[Node]:
    """Return the values of a list or a range, each as a node.

    Raises:
        ConfigError: neither of them, or none at all.
    """
    if isinstance(node.value, list) and node.value:
        return node.value
    if isinstance(node.value, dict) and is_range(list(node.value)):
        kind, numbers = next(iter(node.value.items()))
        if isinstance(numbers.value, list):
            return [Node(value, node.location) for value in spread(kind, numbers.plain(), location=node.location)]
    if isinstance(node.value, dict):
        unknown = [kind for kind in node.value if not is_range([kind])]
        wrong = unknown_range(unknown[0]) if unknown else "a range has one word, and its numbers in a list"
        raise ConfigError(f"{node.location}: {wrong}", hint=f"Write {range_forms()}.")
    wrong = "the list is empty" if node.value == [] else "a list of values or a range is needed here"
    raise ConfigError(
        f"{node.location}: {wrong}", hint="Write [1, 2, 3], {pow2: [8, 10]}, {log: [1e-4, 1e-3, 3]} or alike."
    )


def axis_of(key: str, values: list[Node], folders: tuple[Path, ...]) -> Axis:
    """Return the axis of one key."""
    return tuple({key: Assignment(read_value(key, value.plain(), folders), value.location)} for value in values)


def without(axes: list[Axis], dropped: Callable[[str], bool]) -> list[Axis]:
    """Return the axes without some keys; points that differed in those alone become one."""
    kept = [_without(axis, dropped) if any(map(dropped, _keys(axis))) else axis for axis in axes]
    return [axis for axis in kept if _keys(axis)]


def describe(point: Assignments) -> str:
    """Return what a point varies, for a message."""
    return ", ".join(f"{key} = {'null' if found.value is None else found.value}" for key, found in point.items())


def _without(axis: Axis, dropped: Callable[[str], bool]) -> Axis:
    points = [{key: found for key, found in point.items() if not dropped(key)} for point in axis]
    return tuple({repr([(key, found.value) for key, found in point.items()]): point for point in points}.values())


def _keys(axis: Axis) -> set[str]:
    return {key for point in axis for key in point}


def _block(block: Node, folder: Path) -> list[Axis]:
    if not isinstance(block.value, dict) or len(block.value) != 1:
        raise ConfigError(f"{block.location}: a block has one of the words grid, zip, list", hint=_FORMS)
    kind, body = next(iter(block.value.items()))
    folders = (folder,)
    match kind:
        case "grid":
            return [axis_of(key, values_of(node), folders) for key, node in _filled(body, kind).items()]
        case "zip":
            return [_zip(_filled(body, kind), body.location, folders)]
        case "list":
            return [_list(body, folders)]
    hint = f"{kind} stands beside sweep, not in it." if kind in ("exclude", "limits", "labels", "priority") else _FORMS
    raise ConfigError(f"{body.key_location}: unknown block {kind!r}; a block is grid, zip or list", hint=hint)


def _filled(body: Node, kind: str) -> dict[str, Node]:
    found = dotted_keys(entries(body, kind))
    if not found:
        raise ConfigError(f"{body.location}: the {kind} names no key", hint=_FORMS)
    return found


def _zip(found: dict[str, Node], location: str, folders: tuple[Path, ...]) -> Axis:
    columns = [axis_of(key, values_of(node), folders) for key, node in found.items()]
    if len({len(column) for column in columns}) != 1:
        lengths = ", ".join(f"{key} has {len(column)}" for key, column in zip(found, columns, strict=True))
        raise ConfigError(
            f"{location}: the lists of a zip differ in length: {lengths}", hint="Give each key as many values."
        )
    return tuple({key: found for part in row for key, found in part.items()} for row in zip(*columns, strict=True))


def _list(body: Node, folders: tuple[Path, ...]) -> Axis:
    if not isinstance(body.value, list) or not body.value:
        raise ConfigError(f"{body.location}: list needs one or more points", hint=_FORMS)
    return tuple(
        {
            key: Assignment(read_value(key, node.plain(), folders), node.location)
            for key, node in dotted_keys(entries(point, "a point of a list")).items()
        }
        for point in body.value
    )
