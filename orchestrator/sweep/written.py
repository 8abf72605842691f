"""Configs -> the text of a sweep file that expands to them: shared values once, varied ones point by point."""

import json
from collections.abc import Sequence
from typing import Any

from orchestrator.config.flat_keys import flatten
from orchestrator.config.job import JobConfig
from orchestrator.sweep.assignments import VERSION
from orchestrator.sweep.sweep import Limits, Sweep

_ALWAYS = ("subject.model", "data.source")
_WIDTH = 118


def sweep_text(sweep: Sweep, *, head: Sequence[str] = (), remarks: Sequence[str] = ()) -> str:
    """Return a sweep file of a sweep's name, labels, limits, evaluation and configs.

    `head` and one remark per config stand there as comments. Expanding it gives the same configs in the same order.
    """
    values = [flatten(config.model_dump(mode="json")) for config in sweep.configs]
    defaults = flatten(JobConfig().model_dump(mode="json"))
    shared = {key: value for key, value in values[0].items() if all(point[key] == value for point in values)}
    kept = {key: value for key, value in shared.items() if value != defaults[key] or key in _ALWAYS}
    points = [{key: value for key, value in point.items() if key not in shared} for point in values]
    lines = [*(f"# {line}".rstrip() for line in head), f"version: {VERSION}", f"name: {json.dumps(sweep.name)}"]
    lines += ["overrides:", *(f"  {key}: {_value(value)}" for key, value in kept.items())]
    if any(points):
        lines += ["sweep:", "  - list:", *_points(points, remarks)]
    else:
        lines += [f"# {remark}" for remark in remarks]
    return "\n".join([*lines, *_rest(sweep)]) + "\n"


def _points(points: Sequence[dict[str, Any]], remarks: Sequence[str]) -> list[str]:
    lines = []
    for at, point in enumerate(points):
        line = f"      - {{{', '.join(f'{key}: {_value(value)}' for key, value in point.items())}}}"
        remark = f"# {remarks[at]}" if at < len(remarks) and remarks[at] else ""
        if remark and len(line) + 1 + len(remark) > _WIDTH:
            lines += [f"      {remark}", line]
        else:
            lines.append(f"{line} {remark}".rstrip())
    return lines


def _rest(sweep: Sweep) -> list[str]:
    limits = {name: value for name, value in vars(sweep.limits).items() if value != getattr(Limits(), name)}
    lines = [f"limits: {json.dumps(limits)}"] if limits else []
    if sweep.evaluation is not None:
        lines.append(f"evaluate: {_value(sweep.evaluation.model_dump(mode='json', exclude_defaults=True))}")
    return [*lines, *([f"labels: {json.dumps(sweep.labels, ensure_ascii=False)}"] if sweep.labels else [])]


def _value(value: Any) -> str:
    """Return a value as YAML takes it; JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)
