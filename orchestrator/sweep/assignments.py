"""Assign values to config keys: those of a sweep file, its bases and overrides, each with its location."""

import glob
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import field_paths, near_key
from orchestrator.errors import ConfigError
from orchestrator.sweep.yaml_source import Node, parse_text, read_text
from orchestrator.units import token_count

VERSION = 1
SWEEP_ONLY = ("sweep", "exclude", "limits", "labels", "priority", "evaluate")
SWEEP_KEYS = ("version", "name", "base", "overrides", *SWEEP_ONLY)
FIELDS = frozenset(field_paths())
GROUPS = frozenset(JobConfig.model_fields)

_PATH_KEYS = ("subject.model", "data.source")


class Assignment(NamedTuple):
    """One value of one config key."""

    value: Any
    """Plain; not yet checked."""
    location: str
    """Where it was written."""


Assignments = dict[str, Assignment]


def entries(node: Node, what: str) -> dict[str, Node]:
    """Return the entries of a mapping; none for an empty value.

    Raises:
        ConfigError: it is something else.
    """
    if node.value is None:
        return {}
    if not isinstance(node.value, dict):
        raise ConfigError(f"{node.location}: {what} must be a mapping of keys to values", hint="Write key: value.")
    return node.value


def check_key(key: str, location: str, *, also: tuple[str, ...] = ()) -> str:
    """Return a dotted config key that exists; `also` are other words that may have been meant.

    Raises:
        ConfigError: names what was probably meant.
    """
    if key in FIELDS:
        return key
    hint = "Every key and what it takes: orch config schema"
    if key in GROUPS:
        some = ", ".join(sorted(field for field in FIELDS if field.startswith(f"{key}."))[:3])
        raise ConfigError(f"{location}: {key!r} is a group of keys, such as {some}", hint=hint)
    if key.partition(".")[0] in SWEEP_KEYS and not also:
        raise ConfigError(f"{location}: {key!r} is set in the sweep file itself, not among the config keys", hint=hint)
    near = near_key(key, [*sorted(FIELDS), *also])
    raise ConfigError(f"{location}: unknown key {key!r}" + (f"; did you mean {near!r}?" if near else ""), hint=hint)


def dotted_keys(found: dict[str, Node], *, also: tuple[str, ...] = ()) -> dict[str, Node]:
    """Return dotted keys for nested or dotted ones.

    Raises:
        ConfigError: an unknown key, or one written in both ways.
    """
    flat: dict[str, Node] = {}
    for name, node in found.items():
        below = {name: node}
        if name in GROUPS and (node.value is None or isinstance(node.value, dict)):
            below = {f"{name}.{leaf}": inner for leaf, inner in (node.value or {}).items()}
        for key, inner in below.items():
            location = inner.key_location or inner.location
            if check_key(key, location, also=also) in flat:
                raise ConfigError(
                    f"{location}: {key!r} is written twice", hint=f"It stands first at {flat[key].key_location}."
                )
            flat[key] = inner
    return flat


def assign(found: dict[str, Node], folders: tuple[Path, ...], *, also: tuple[str, ...] = ()) -> Assignments:
    """Return assignments; a path that exists in one of the folders becomes absolute."""
    return {
        key: Assignment(read_value(key, node.plain(), folders), node.location)
        for key, node in dotted_keys(found, also=also).items()
    }


def read_value(key: str, value: Any, folders: tuple[Path, ...]) -> Any:
    """Return a key's value as a config takes it: tokens such as 50M as a number, a path as `_absolute_path` does."""
    if key.endswith("_tokens") and isinstance(value, str):
        return token_count(value) or value
    return _absolute_path(key, value, folders)


def _absolute_path(key: str, value: Any, folders: tuple[Path, ...]) -> Any:
    """Return the absolute path for a relative path or pattern of the subject or the data that exists in a folder."""
    if key not in _PATH_KEYS or not isinstance(value, str) or not value:
        return value
    if value.startswith("~/"):
        return str(Path.home() / value[2:])
    for folder in () if Path(value).is_absolute() else folders:
        try:
            if (folder / value).exists():
                return str((folder / value).resolve())
            if any(folder.glob(value)):
                return str(Path(glob.escape(str(folder.resolve()))) / value)
        except (OSError, ValueError, NotImplementedError):
            continue  # not a path at all, so it names something else
    return value


def assignments_of(root: dict[str, Node], path: Path, *, chain: tuple[Path, ...] = ()) -> Assignments:
    """Return what one file assigns: its base, then its own config keys, then its overrides.

    Raises:
        ConfigError: an unknown key, another version, a base that is missing or leads back to itself.
    """
    chain = (*chain, path.resolve())
    if "version" in root and (root["version"].value != VERSION or isinstance(root["version"].value, bool)):
        raise ConfigError(
            f"{root['version'].location}: version {root['version'].plain()!r} is not known here",
            hint=f"This program reads version: {VERSION}.",
        )
    folders = (path.parent,)
    own = {key: node for key, node in root.items() if key not in SWEEP_KEYS}
    found = _base(root["base"], path, chain) if "base" in root else {}
    found |= assign(own, folders, also=SWEEP_KEYS)
    if "overrides" in root:
        found |= assign(entries(root["overrides"], "overrides"), folders)
    return found


def _base(node: Node, path: Path, chain: tuple[Path, ...]) -> Assignments:
    if not isinstance(node.value, str):
        return _of_base(entries(node, "base"), path, chain[:-1])
    base = path.parent / node.value
    if base.resolve() in chain:
        loop = " -> ".join(step.name for step in (*chain, base))
        raise ConfigError(f"{node.location}: the bases go in a circle: {loop}", hint="Take one of the base lines out.")
    try:
        text = read_text(base)
    except ConfigError as error:
        raise ConfigError(
            f"{node.location}: base {error.message}", hint=f"A base is looked for from the folder of {path.name}."
        ) from None
    return _of_base(entries(parse_text(text, str(base)), "a base"), base, chain)


def _of_base(root: dict[str, Node], path: Path, chain: tuple[Path, ...]) -> Assignments:
    for key in SWEEP_ONLY:
        if key in root:
            raise ConfigError(
                f"{root[key].key_location}: a base cannot hold {key!r}",
                hint="A base gives config keys; the sweep is yours.",
            )
    return assignments_of(root, path, chain=chain)
