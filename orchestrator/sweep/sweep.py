"""A sweep: named configs, in order, with the text they came from and what they may use."""

from dataclasses import dataclass, field

from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.job import JobConfig


@dataclass(frozen=True)
class Limits:
    """What a sweep may use."""

    max_parallel: int | None = None
    """Jobs of the sweep that may run at once."""
    run_cap: int | None = None
    """Jobs the sweep may hold in all."""
    max_failures: int = 3
    """Failed attempts before a job is given up."""


@dataclass(frozen=True)
class Sweep:
    """A named set of configs, in order, with the text it came from."""

    name: str
    configs: tuple[JobConfig, ...]
    labels: dict[str, str] = field(default_factory=dict)
    limits: Limits = Limits()
    text: str = ""
    priority: int = 0
    """Of its jobs; higher ones run first."""
    evaluation: EvaluationPlan | None = None
    """What is measured of each SAE once it is trained."""
