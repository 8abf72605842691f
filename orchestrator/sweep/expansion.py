"""A sweep file with overrides -> Sweep: every config, in order, validated, each with its own config_id."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.evaluation.reading import parse_plan
from orchestrator.config.flat_keys import flatten, nest
from orchestrator.config.job import JobConfig, Part
from orchestrator.config.validation import SCHEMA_HINT, explain, near_key
from orchestrator.errors import ConfigError
from orchestrator.sweep.assignments import FIELDS, Assignment, Assignments, assignments_of, entries
from orchestrator.sweep.expression import Expression, compile_expression
from orchestrator.sweep.overrides import apply
from orchestrator.sweep.plan_paths import with_checked_paths
from orchestrator.sweep.points import Axis, describe, read_axes
from orchestrator.sweep.sweep import Limits, Sweep
from orchestrator.sweep.yaml_source import STANDARD_INPUT, Node, parse_text, read_text

MAX_POINTS = 200_000
MAX_LIMIT = 10**9
NO_FILE = Path("sweep")
"""The path of a sweep that is in no file."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_DEFAULTS = flatten(JobConfig().model_dump(mode="json"))


class _Point(NamedTuple):
    number: int
    varied: Assignments
    values: Assignments

    def __str__(self) -> str:
        return f"point {self.number}" + (f" ({describe(self.varied)})" if self.varied else "")


def expand(path: Path, overrides: Sequence[str] = (), *, name: str | None = None) -> Sweep:
    """Return the sweep a file describes, after the overrides; nothing is stored. `name`: instead of its own.

    Raises:
        ConfigError: says file, line and column, or the override, and what is allowed there.
    """
    return expand_text(read_text(path), path, overrides, name=name)


def expand_text(text: str, path: Path, overrides: Sequence[str] = (), *, name: str | None = None) -> Sweep:
    """Return the sweep that the text of a sweep file describes, as `expand`.

    `path` names it in messages, and its folder is where relative paths are looked for. NO_FILE gives no name.

    Raises:
        ConfigError: as `expand`.
    """
    node = parse_text(text, str(path))
    if node.value is None:
        raise ConfigError(f"{path}: is empty", hint="A sweep file names at least one key, such as sae.k: 32.")
    root = entries(node, "a sweep file")
    fixed, axes = apply(
        overrides, assignments_of(root, path), read_axes(root.get("sweep"), path.parent), folders=(Path(), path.parent)
    )
    limits = _limits(entries(root["limits"], "limits")) if "limits" in root else Limits()
    configs = tuple(_configs(fixed, axes, _rules(root.get("exclude"))))
    _check_count(len(configs), limits, path)
    called = name or _name(root.get("name"), path)
    labels, priority = _labels(root.get("labels")), _priority(root.get("priority"))
    evaluation = _evaluation(root.get("evaluate"), path)
    return Sweep(called, configs, labels, limits, text, priority, evaluation)


def check_name(name: str, location: str = "the name") -> str:
    """Return a sweep's name that can be used.

    Raises:
        ConfigError: says what a name is made of.
    """
    if not _NAME.fullmatch(name) or name.isdigit():
        raise ConfigError(
            f"{location}: {name!r} cannot name a sweep",
            hint="A name has up to 64 letters, digits, '.', '_' or '-', begins with no '.' or '-', and is no number.",
        )
    return name


def _configs(fixed: Assignments, axes: list[Axis], rules: list[Expression]) -> Iterator[JobConfig]:
    total = math.prod(len(axis) for axis in axes)
    if total > MAX_POINTS:
        raise ConfigError(
            f"the sweep has {total} points; {MAX_POINTS} is the most", hint="Split it over several files."
        )
    seen: dict[bytes, int] = {}
    shared = _SharedParts()
    for point in _points(fixed, axes):
        if _excluded(point, rules):
            continue
        config = shared.config(point)
        first = seen.setdefault(bytes.fromhex(config.config_id), point.number)
        if first != point.number:
            raise _duplicate(next(islice(_points(fixed, axes), first - 1, None)), point)
        yield config
    if not seen:
        raise ConfigError("exclude leaves no point of the sweep", hint="Take a rule out, or vary more values.")


def _points(fixed: Assignments, axes: list[Axis]) -> Iterator[_Point]:
    for number, parts in enumerate(product(*axes), start=1):
        varied = {key: found for part in parts for key, found in part.items()}
        yield _Point(number, varied, fixed | varied)


def _excluded(point: _Point, rules: list[Expression]) -> bool:
    values = _DEFAULTS | {key: found.value for key, found in point.values.items()} if rules else {}
    try:
        return any(rule.holds(values) for rule in rules)
    except ConfigError as error:
        _validated(point)  # an invalid value explains more than the rule that failed on it
        raise ConfigError(f"{error.message}, at {point}", hint=error.hint) from None


class _SharedParts:
    """Makes the configs of points. A part that several points assign alike is validated once, and is one object."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, ...], Part] = {}
        self._places = {key: key.split(".") for key in FIELDS}

    def config(self, point: _Point) -> JobConfig:
        """Return the config of a point.

        Raises:
            ConfigError: as `_validated`.
        """
        groups: dict[str, dict[str, Assignment]] = {}
        for key, found in point.values.items():
            name, leaf = self._places[key]
            groups.setdefault(name, {})[leaf] = found
        try:
            return JobConfig.model_validate({name: self._part(name, given) for name, given in groups.items()})
        except ValidationError:
            return _validated(point)  # says what is wrong with the whole

    def _part(self, name: str, given: dict[str, Assignment]) -> Part:
        key = tuple(map(id, given.values()))  # a sweep makes its assignments once, and its points share them
        part = self._parts.get(key)
        if part is None:
            kind: type[Part] = JobConfig.model_fields[name].annotation  # type: ignore[assignment]
            part = self._parts[key] = kind.model_validate({leaf: found.value for leaf, found in given.items()})
        return part


def _validated(point: _Point) -> JobConfig:
    try:
        return JobConfig.model_validate(nest({key: found.value for key, found in point.values.items()}))
    except ValidationError as error:
        path, said = explain(error)
        key, found = _wrong_assignment(path, said, point)
        at = f", at {point}" if key in point.varied else ""
        said = said if path in said else f"{path}: {said}"
        hint = f"To vary it, write sweep: [grid: {{{key}: …}}]." if isinstance(found.value, dict) else SCHEMA_HINT
        raise ConfigError(f"{found.location}: {said}{at}", hint=hint) from None


def _wrong_assignment(path: str, said: str, point: _Point) -> tuple[str, Assignment]:
    """Return the most likely cause: the key itself, else one the message names, a varied or later one first."""

    def likelihood(key: str) -> tuple[bool, bool, bool]:
        named = re.search(rf"\b{key.rpartition('.')[2]}\b", said) is not None
        return path == key or path.startswith(f"{key}."), named, key in point.varied

    # A problem of several parts at once has no path: any key may be its cause.
    prefix = f"{path}." if path else ""
    near = [key for key in point.values if f"{key}.".startswith(prefix) or path.startswith(f"{key}.")]
    key = max(reversed(near), key=likelihood)
    return key, point.values[key]


def _duplicate(first: _Point, second: _Point) -> ConfigError:
    if describe(first.varied) == describe(second.varied):
        message = f"points {first.number} and {second.number} are the same, a value is listed twice: {second}"
    else:
        message = f"{first} and {second} give one and the same config"
    location = list(second.varied.values())[-1].location
    return ConfigError(f"{location}: {message}", hint="Take one out; to train a config again, vary training.seed.")


def _rules(node: Node | None) -> list[Expression]:
    if node is None or node.value is None:
        return []
    rules = node.value if isinstance(node.value, list) else [node]
    for rule in rules:
        if not isinstance(rule.value, str):
            raise ConfigError(
                f"{rule.location}: a rule of exclude is text",
                hint='Write exclude: ["sae.k == 64 and sae.n_latents == 4096"]',
            )
    return [compile_expression(rule.value, location=rule.location, keys=_DEFAULTS) for rule in rules]


def _limits(found: dict[str, Node]) -> Limits:
    known = [field.name for field in fields(Limits)]
    for key, node in found.items():
        if key not in known:
            near = near_key(key, known)
            meant = f"; did you mean {near!r}?" if near else ""
            raise ConfigError(f"{node.key_location}: unknown limit {key!r}{meant}", hint=f"Limits: {', '.join(known)}.")
        whole = type(node.value) in (int, float) and 1 <= node.value <= MAX_LIMIT and node.value % 1 == 0
        if node.value is not None and not whole:
            raise ConfigError(
                f"{node.location}: {key} must be a whole number from 1 (got {node.plain()!r})",
                hint="Write null for the default.",
            )
    return Limits(**{key: int(node.value) for key, node in found.items() if node.value is not None})


def _check_count(count: int, limits: Limits, path: Path) -> None:
    if limits.run_cap is not None and count > limits.run_cap:
        raise ConfigError(
            f"{path}: the sweep has {count} configs, run_cap allows {limits.run_cap}",
            hint="Raise limits.run_cap, or leave points out with exclude.",
        )


def _priority(node: Node | None) -> int:
    if node is None:
        return 0
    if type(node.value) is not int or abs(node.value) >= 2**31:
        raise ConfigError(
            f"{node.location}: priority must be a whole number (got {node.plain()!r})",
            hint="Such as 10: higher ones run first.",
        )
    return node.value


def _evaluation(node: Node | None, path: Path) -> EvaluationPlan | None:
    if node is None or node.value is None:
        return None
    folder = path.parent.absolute()
    return with_checked_paths(parse_plan(node.plain(), f"{node.location}: evaluate", folder), folder)


def _labels(node: Node | None) -> dict[str, str]:
    found = entries(node, "labels") if node else {}
    for key, label in found.items():
        if not key or not isinstance(label.value, str):
            raise ConfigError(
                f"{label.location}: the label {key!r} must be text", hint=f'Put it in quotes: {key}: "..."'
            )
    return {key: label.value for key, label in found.items()}


def _name(node: Node | None, path: Path) -> str:
    if node is None or node.value is None:
        if path == NO_FILE:
            raise ConfigError("the sweep has no name", hint="Give it one, such as name: mine")
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", "stdin" if path == STANDARD_INPUT else path.stem).lstrip("-.")[:64]
        return check_name(stem, f"{path}: it has no name, and its file name makes none")
    if not isinstance(node.value, str):
        is_number = isinstance(node.value, int | float) and not isinstance(node.value, bool)
        raise ConfigError(
            f"{node.location}: the name must be text (got {node.plain()!r})",
            hint="A name has a letter, as a number means a job: for example sweep-1"
            if is_number
            else 'Put it in quotes: "..."',
        )
    return check_name(node.value, node.location)
