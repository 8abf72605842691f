"""The two ways to a JobConfig: validate values that come in, or read back what was validated and stored."""

import json
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError

from orchestrator.config import synthetic
from orchestrator.config.flat_keys import flatten
from orchestrator.config.job import JobConfig, Part, canonical_text, text_id
from orchestrator.errors import ConfigError

_Kind = TypeVar("_Kind", bound=Part)
SCHEMA_HINT = "Every key and what it takes: orch config schema"


def parse(values: dict[str, Any]) -> JobConfig:
    """Validate nested values that come in from outside into a JobConfig.

    Raises:
        ConfigError: says field, value and what is allowed.
    """
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        path, said = explain(error)
        raise ConfigError(said if path in said else f"{path}: {said}", hint=SCHEMA_HINT) from None


def read_stored(text: str, config_id: str) -> JobConfig:
    """Return a stored config. What was validated when it was stored is not validated again.

    A text whose sha256 is its `config_id` is what a validated config wrote: its values are taken as they are, and a
    field that a later version added has its default. The config keeps that id, also where the new field would give
    another. Any other text has been edited since, or comes from a later version, with a key or a choice (an activation,
    a site) that this one does not know: it is validated like values that come in, and its id is computed anew.

    Raises:
        ConfigError: not a config of this version; says field, value and what is allowed.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", hint=SCHEMA_HINT) from None
    if text_id(text) != config_id or not _is_known(values):
        return parse(values)
    parts: dict[str, Any] = {name: _part(name, part) for name, part in values.items()}
    config = JobConfig.model_construct(**parts)
    config.__dict__["config_id"] = config_id
    return config


def read_again(
    kind: type[_Kind], text: str, config_id: str, *, said: Callable[[ValidationError], str], hint: str
) -> _Kind:
    """Return a stored config of another kind of job, under the id it was stored with where its text is what was stored.

    `said` words what is wrong with it, `hint` what makes it anew.

    Raises:
        ConfigError: it is not one of this version; says field and value.
    """
    try:
        config = kind.model_validate(json.loads(text))
    except ValidationError as error:
        raise ConfigError(said(error), hint=f"It was enqueued by another version: {hint}") from None
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}") from None
    if text_id(text) == config_id:
        config.__dict__["config_id"] = config_id
    return config


def from_stored(values: Mapping[str, Any]) -> JobConfig:
    """Return the config of values that a validated config wrote into a file of ours.

    Raises:
        ConfigError: as `read_stored`.
    """
    text = canonical_text(values)
    return read_stored(text, text_id(text))


def _is_choice(annotation: Any) -> bool:
    return get_origin(annotation) is Literal


_PARTS: Mapping[str, type[Part]] = {
    name: info.annotation
    for name, info in JobConfig.model_fields.items()
    if isinstance(info.annotation, type) and issubclass(info.annotation, Part)
}
_FIELDS = {name: frozenset(kind.model_fields) for name, kind in _PARTS.items()}
_CHOICES = {
    name: {field: get_args(info.annotation) for field, info in kind.model_fields.items() if _is_choice(info.annotation)}
    for name, kind in _PARTS.items()
}
"""By part and field: the values of those fields that take one of a few."""


def _is_known(values: Any) -> bool:
    """Say whether this version knows every part, field and choice of some values."""
    if not isinstance(values, dict):
        return False
    for name, part in values.items():
        if name not in _FIELDS or not isinstance(part, dict) or not part.keys() <= _FIELDS[name]:
            return False
        if any(part[field] not in choices for field, choices in _CHOICES[name].items() if field in part):
            return False
    return synthetic.is_known(values.get("subject", {}).get("model", ""))


def _part(name: str, values: Mapping[str, Any]) -> Part:
    # JSON has no tuples, and a config no lists.
    frozen: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return _PARTS[name].model_construct(**frozen)


def field_paths() -> list[str]:
    """Return every dotted key a config knows, such as `sae.k`."""
    return list(flatten(JobConfig().model_dump(mode="json")))


def near_key(key: str, keys: Collection[str]) -> str | None:
    """Return the key that was most likely meant: of the same last part, else of nearly the same letters."""
    last = key.rpartition(".")[2]
    by_last = {known.rpartition(".")[2]: known for known in keys}
    close = get_close_matches(key, keys, n=1) or [by_last[name] for name in get_close_matches(last, by_last, n=1)]
    return by_last.get(last) or (close[0] if close else None)


def explain(error: ValidationError, *, keys: Collection[str] | None = None) -> tuple[str, str]:
    """Return the dotted key of the first problem, and what is wrong there; `keys`: those there are, a job's if None."""
    first, *others = error.errors()
    loc = [str(part) for i, part in enumerate(first["loc"]) if i < 2 or isinstance(part, int)]
    path = ".".join(loc)
    if first["type"] == "extra_forbidden":
        near = near_key(path, [*field_paths(), *JobConfig.model_fields] if keys is None else keys)
        return path, f"unknown key {path!r}" + (f"; did you mean {near!r}?" if near else "")
    said = [first["msg"], *(other["msg"] for other in others if other["loc"][:2] == first["loc"][:2] != first["loc"])]
    text = " or ".join([said[0], *(again.removeprefix("Input should be ") for again in said[1:])])
    got = "" if isinstance(value := first["input"], dict | Part) else f" (got {value!r})"
    return path, text.removeprefix("Value error, ") + got
