"""The order that a supervisor sends the process that trains a tuned lens: one job, one JSON line."""

import json
from dataclasses import asdict, dataclass

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.lens.training import LensConfig


@dataclass(frozen=True)
class LensOrder:
    """What one process is to train, and where."""

    job_id: int
    attempt: int
    config: LensConfig
    artifacts: str
    """Folder of all artifacts: checkpoints go into the job's folder in it, the lens into `lenses`."""
    resume: tuple[CheckpointRef, ...]
    """Checkpoints of earlier attempts, newest first."""
    tokens_folder: str
    """Folder of packed token files, shared with trainers."""
    compile_folder: str
    checkpoint_seconds: float
    device: str
    threads: int
    supervisor: int
    """Process id of the parent: the process ends when it does."""

    def to_json(self) -> bytes:
        """Return the order as one line."""
        values = asdict(self) | {"config": self.config.model_dump(mode="json")}
        return json.dumps(values, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes) -> "LensOrder":
        """Read an order."""
        values = json.loads(line)
        resume = tuple(CheckpointRef(**ref) for ref in values["resume"])
        return cls(**values | {"config": LensConfig.model_validate(values["config"]), "resume": resume})
