"""Validate values into a JobConfig, and say in plain words what is wrong with them."""

from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from orchestrator.config.flat_keys import flatten
from orchestrator.config.job import JobConfig, Part
from orchestrator.errors import ConfigError

SCHEMA_HINT = "Every key and what it takes: orch config schema"


def parse(values: dict[str, Any]) -> JobConfig:
    """Validate nested values into a JobConfig.

    Raises:
        ConfigError: says field, value and what is allowed.
    """
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        path, said = explain(error)
        raise ConfigError(said if path in said else f"{path}: {said}", hint=SCHEMA_HINT) from None


def field_paths() -> list[str]:
    """Return every dotted key a config knows, such as `sae.k`."""
    return list(flatten(JobConfig().model_dump(mode="json")))


def near_key(key: str, keys: Collection[str]) -> str | None:
    """Return the key that was most likely meant: of the same last part, else of nearly the same letters."""
    last = key.rpartition(".")[2]
    by_last = {known.rpartition(".")[2]: known for known in keys}
    close = get_close_matches(key, keys, n=1) or [by_last[name] for name in get_close_matches(last, by_last, n=1)]
    return by_last.get(last) or (close[0] if close else None)


def explain(error: ValidationError) -> tuple[str, str]:
    """Return the dotted key of the first problem, and what is wrong there."""
    first, *others = error.errors()
    loc = [str(part) for i, part in enumerate(first["loc"]) if i < 2 or isinstance(part, int)]
    path = ".".join(loc)
    if first["type"] == "extra_forbidden":
        near = near_key(path, [*field_paths(), *JobConfig.model_fields])
        return path, f"unknown key {path!r}" + (f"; did you mean {near!r}?" if near else "")
    said = [first["msg"], *(other["msg"] for other in others if other["loc"][:2] == first["loc"][:2] != first["loc"])]
    text = " or ".join([said[0], *(again.removeprefix("Input should be ") for again in said[1:])])
    got = "" if isinstance(value := first["input"], dict | Part) else f" (got {value!r})"
    return path, text.removeprefix("Value error, ") + got
