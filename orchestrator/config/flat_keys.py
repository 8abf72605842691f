"""A config's values in two shapes: nested by part, and flat under dotted keys such as `sae.k`. Loads no pydantic."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

LATER_FIELDS = ("sae.lens", "sae.target_l0", "subject.layers")
"""The `later_fields` of all parts: a stored config has them only where they are set."""


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys, in their order."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def flatten_stored(text: str) -> dict[str, Any]:
    """Return a stored config's values under dotted keys; null where a field that came later is unset."""
    flat = flatten(json.loads(text))
    return flat | {key: None for key in LATER_FIELDS if key not in flat}


def nest(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return values under dotted keys nested by the part of a config they belong to."""
    nested: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        part, _, leaf = key.partition(".")
        nested.setdefault(part, {})[leaf] = value
    return nested


def varied_keys(points: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys of flat values, in their order, that have different values at some of these points."""
    found: dict[str, set[str]] = {}
    for point in points:
        for key, value in point.items():
            found.setdefault(key, set()).add(repr(value))  # a list has no hash
    return [key for key, texts in found.items() if len(texts) > 1]
