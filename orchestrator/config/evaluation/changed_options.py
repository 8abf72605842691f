"""What an evaluation asked for other than by default: scores of other options, or another reading, do not compare."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from orchestrator.config.evaluation.downstream import DownstreamOptions
from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.evaluation.families import FAMILIES, Family
from orchestrator.config.evaluation.probes import ProbeTask
from orchestrator.config.job import DataConfig, Part, canonical_text

_NO_OTHER_SCORES: Mapping[str, tuple[str, ...]] = {
    "data": ("source", "seed", "activations"),
    "downstream": tuple(DownstreamOptions.model_fields),
    "probes": ("k", "bootstraps"),
    "n2g": ("reconstruct",),
    "ablation": ("variants",),
    "structure": ("against", "umap"),
    "explanation": ("timeout_seconds",),
    "layers": ("least_activations", "prompt", "examples", "example_latents", "example_tokens"),
}
"""What is told elsewhere, and options that ask for more scores, or for more beside them, and leave the others alone."""
_LONGEST = 60
"""Characters of a value; of a longer one its beginning, and eight digits of its sha256."""


def changed_options(config: Mapping[str, Any]) -> dict[Family, str]:
    """Return, by metric family, what its scores depend on and is not the default: `probes.pooling=mean`.

    `config`: an `EvaluationConfig` as JSON has it, of whatever version: options that are not known now are left out.
    """
    reading = _changed("data", config["data"])
    return {family: ", ".join([*reading, *_changed(family, config["plan"].get(family))]) for family in FAMILIES}


def _changed(part: str, given: Mapping[str, Any] | None) -> list[str]:
    return [
        f"{part}.{name}={_told(given[name])}"
        for name, default in _defaults(part).items()
        if given and name in given and given[name] != default
    ]


@cache
def _defaults(part: str) -> dict[str, Any]:
    options: Part | None = DataConfig() if part == "data" else getattr(EvaluationPlan(), part, None)
    values = json.loads(canonical_text(options.model_dump(mode="json"))) if options else {}
    return {name: value for name, value in values.items() if name not in _NO_OTHER_SCORES.get(part, ())}


def _told(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "source" in one for one in value):
        return " ".join(map(_task, value))
    text = value if isinstance(value, str) else canonical_text(value)
    return _short(text)


def _task(task: Mapping[str, Any]) -> str:
    """Return a task of probes: its source, and what else of it is not the default."""
    default = ProbeTask(source="x").model_dump(mode="json")
    rest = {name: value for name, value in task.items() if name != "source" and value != default.get(name)}
    return _short(str(task["source"]) + (canonical_text(rest) if rest else ""))


def _short(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}…{hashlib.sha256(text.encode()).hexdigest()[:8]}"
