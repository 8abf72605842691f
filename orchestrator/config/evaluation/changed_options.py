"""What an evaluation asked of a metric family other than by default: scores of other options are other scores."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from orchestrator.config.evaluation.downstream import DownstreamOptions
from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.evaluation.families import Family
from orchestrator.config.job import canonical_text

_ADDING: Mapping[Family, tuple[str, ...]] = {
    "downstream": tuple(DownstreamOptions.model_fields),
    "probes": ("k", "bootstraps"),
    "n2g": ("reconstruct",),
    "ablation": ("variants",),
    "structure": ("against", "umap"),
    "explanation": ("timeout_seconds",),
    "layers": ("least_activations", "prompt", "examples", "example_latents", "example_tokens"),
}
"""Options that ask for more scores, or for more beside them, and leave the others as they are."""
_LONGEST = 60
"""Characters of a value; of a longer one its beginning, and eight digits of its sha256."""


def changed_options(plan: Mapping[str, Any], family: Family) -> str:
    """Return the options that a family's scores depend on, where they are not the defaults: `pooling=mean, ridge=0.1`.

    `plan`: an `EvaluationPlan` as JSON has it, of whatever version: options that are not known now are left out.
    """
    given = plan.get(family) or {}
    adding = _ADDING.get(family, ())
    told = [
        f"{name}={_told(given[name])}"
        for name, default in _defaults(family).items()
        if name not in adding and name in given and given[name] != default
    ]
    return ", ".join(told)


@cache
def _defaults(family: Family) -> dict[str, Any]:
    options = EvaluationPlan().options(family)
    found: dict[str, Any] = json.loads(canonical_text(options.model_dump(mode="json"))) if options else {}
    return found


def _told(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_text(value)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}…{hashlib.sha256(text.encode()).hexdigest()[:8]}"
