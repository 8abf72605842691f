"""The ways to a plan and to an evaluation: validate values that come in, or read back what was stored."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.config.evaluation.evaluation import EvaluationConfig, EvaluationPlan
from orchestrator.config.evaluation.families import FAMILIES
from orchestrator.config.job import Part
from orchestrator.config.validation import read_again
from orchestrator.errors import ConfigError
from orchestrator.units import token_count

PLAN_HINT = "Every key and what it takes: orch config schema --evaluation"


def parse_plan(values: Any, where: str = "", folder: Path | None = None) -> EvaluationPlan:
    """Return the plan of a list of metric families, or of a mapping of a plan's keys; `where` it was written.

    `folder`: that of the file it was read from, where the tables lie that it names by relative paths.

    Raises:
        ConfigError: says what is wrong, and what was probably meant.
    """
    before = f"{where}: " if where else ""
    if isinstance(values, list | tuple):
        values = {"metrics": list(values)}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{before}takes a list of metric families, or a mapping of keys", hint=families_hint())
    if isinstance(values.get("tokens"), str):
        values = {**values, "tokens": token_count(values["tokens"]) or values["tokens"]}
    named = values.get("metrics")
    for family in named if isinstance(named, list | tuple) else ():
        if family not in FAMILIES:
            raise ConfigError(f"{before}{unknown_family(family)}", hint=families_hint())
    try:
        return EvaluationPlan.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(f"{before}{_said(error)}", hint=PLAN_HINT) from None


def unknown_family(name: Any) -> str:
    """Return that there is no such metric family, and which was probably meant."""
    near = get_close_matches(str(name), FAMILIES, n=1)
    return f"{name!r} is no metric family" + (f"; did you mean {near[0]!r}?" if near else "")


def families_hint() -> str:
    """Return the families there are."""
    return f"Families: {', '.join(FAMILIES)}. What each answers: orch config schema --evaluation"


def read_evaluation(text: str, config_id: str) -> EvaluationConfig:
    """Return a stored evaluation, under the id it was stored with where its text is what was stored.

    Raises:
        ConfigError: it is not one of this version; says field and value.
    """
    return read_again(EvaluationConfig, text, config_id, said=_said, hint="orch evaluate makes a new one")


def _said(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = get_close_matches(path, _paths(EvaluationPlan), n=1)
        return f"unknown key {path!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    value = first["input"]
    got = "" if isinstance(value, dict | Part) else f" (got {value!r})"
    text = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list") + got
    return f"{path}: {text}" if path else text


def _paths(kind: type[Part], prefix: str = "") -> list[str]:
    """Return the dotted keys of a part and of those within it."""
    found: list[str] = []
    for name, field in kind.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Part):
            found += _paths(field.annotation, f"{prefix}{name}.")
    return found
