"""The order that a supervisor sends an evaluation process: SAEs of one model and text, one JSON line."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.config.evaluation.evaluation import EvaluatedSae, EvaluationConfig


@dataclass(frozen=True)
class EvaluationAssignment:
    """One evaluation job of an order: one attempt of it."""

    job_id: int
    attempt: int
    config: EvaluationConfig
    evaluated: EvaluatedSae
    artifacts: str
    """Folder of what this attempt keeps beside its scores."""
    measured: tuple[str, ...] = ()
    """Metric families that an earlier attempt has measured."""


@dataclass(frozen=True)
class EvaluationOrder:
    """What one process is to measure, and where."""

    jobs: tuple[EvaluationAssignment, ...]
    tokens_folder: str
    """Folder of packed token files, shared with trainers."""
    store_folder: str
    """Folder of what belongs to a model and a text alone, shared by evaluations."""
    compile_folder: str
    device: str
    threads: int
    supervisor: int
    """Process id of the parent: the process ends when it does."""
    lenses_folder: str = ""
    """Folder of the tuned lenses among the artifacts."""
    compile: str = "auto"
    """auto or off: whether kernels may be compiled."""
    log: str = ""
    """Where what is printed goes from now on, for a process that had another order before."""

    def to_json(self) -> bytes:
        """Return the order as one line."""
        values = asdict(self) | {"jobs": [_written(job) for job in self.jobs]}
        return json.dumps(values, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> "EvaluationOrder":
        """Read an order."""
        values = json.loads(line)
        return cls(**values | {"jobs": tuple(_assignment(job) for job in values["jobs"])})


def _written(job: EvaluationAssignment) -> dict[str, Any]:
    own = {name: getattr(job, name) for name in ("job_id", "attempt", "artifacts")}
    config = {"config": job.config.model_dump(mode="json"), "evaluated": job.evaluated.model_dump(mode="json")}
    return own | config | {"measured": list(job.measured)}


def _assignment(values: dict[str, Any]) -> EvaluationAssignment:
    config = EvaluationConfig.model_validate(values["config"])
    evaluated = EvaluatedSae.model_validate(values["evaluated"])
    more = {"config": config, "evaluated": evaluated, "measured": tuple(values["measured"])}
    return EvaluationAssignment(**values | more)
