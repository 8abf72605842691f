"""The keys of a config as lines: what each takes, its default, and what it means."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.cli.terminal import style
from orchestrator.config.evaluation.families import MEANINGS

_WIDTH = 100
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


def key_lines(schema: Mapping[str, Any], *, width: int | None) -> Iterator[str]:
    """Yield two lines or more for each key of a JSON schema of a config, grouped by its parts."""
    for part, about in schema["properties"].items():
        kind = schema["$defs"][_reference(about)]
        yield style(f"{part}: {kind.get('description', '')}", bold=True)
        for name, field in kind["properties"].items():
            yield from _field_lines(f"{part}.{name}", field, width)
        yield ""


def plan_lines(schema: Mapping[str, Any], width: int | None) -> Iterator[str]:
    """Yield the metric families, and lines for each key of the JSON schema of an evaluation plan."""
    yield style("metric families", bold=True)
    for family, meaning in MEANINGS.items():
        yield f"  {style(f'{family:<15}', fg='cyan')} {meaning}"
    yield ""
    parts = {name: about for name, about in schema["properties"].items() if "$ref" in about or "allOf" in about}
    for name, field in schema["properties"].items():
        if name not in parts:
            yield from _field_lines(name, field, width)
    yield ""
    options = {name: about for name, about in parts.items() if schema["$defs"][_reference(about)].get("properties")}
    yield from key_lines({**schema, "properties": options}, width=width)


def _field_lines(key: str, field: Mapping[str, Any], width: int | None) -> Iterator[str]:
    given = f"{_takes(field)}; {_default(field)}"
    yield f"  {style(key, fg='cyan')}  {style(given, dim=True)}"
    if said := field.get("description"):
        yield textwrap.indent(textwrap.fill(said, min(width or _WIDTH, _WIDTH) - 6), " " * 6)


def _reference(about: Mapping[str, Any]) -> str:
    reference = about.get("$ref") or about["allOf"][0]["$ref"]
    return str(reference).rpartition("/")[2]


def _takes(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_takes(one) for one in field["anyOf"]))
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if field.get("type") == "array":
        return "a list"
    low = _TYPES.get(field.get("type", ""), "anything")
    if field.get("exclusiveMinimum") == 0:
        low += " above 0"
    elif "minimum" in field:
        low += f" from {field['minimum']}"
    return low + (f" and below {field['exclusiveMaximum']}" if "exclusiveMaximum" in field else "")


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    if isinstance(default, list):
        shown = (one.get("source", one) if isinstance(one, dict) else one for one in default)
        return f"default {', '.join(map(str, shown)) or 'none'}"
    if default is None:
        return "default null"
    if isinstance(default, int) and not isinstance(default, bool):
        return f"default {default:_}"
    return f"default {str(default).lower() if isinstance(default, bool) else default}"
