"""The queue's types: what a worker holds, what it is given, and what it hands back."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.errors import StateError
from orchestrator.job_states import JobKind, Outcome, State

if TYPE_CHECKING:
    from orchestrator.config.evaluation.evaluation import EvaluatedSae, EvaluationConfig
    from orchestrator.config.job import JobConfig
    from orchestrator.config.lens.training import LensConfig

    AnyConfig = JobConfig | EvaluationConfig | LensConfig

Desired = Literal["run", "pause", "cancel"]


class LeaseLost(StateError):
    """The worker has been given up: it stops quietly and writes nothing more for the job."""


@dataclass(frozen=True)
class Worker:
    """Who claims."""

    name: str
    host: str
    pid: int
    device: str
    machine: str | None = None
    """What all hosts of one machine, its containers, have in common; None where nothing tells."""


@dataclass(frozen=True)
class Lease:
    """The right to write for a job; all three must match."""

    job_id: int
    attempt: int
    token: str


@dataclass(frozen=True)
class Claim:
    """One job, with all that the process which runs it needs to know."""

    lease: Lease
    config: "AnyConfig"
    sweep: str
    """Its name."""
    checkpoints: tuple[CheckpointRef, ...]
    """Newest first."""
    stream_key: str | None = None
    """Jobs of this key may share its trainer; None: it is trained alone."""
    company: int | None = None
    """The most jobs that its trainer may have; None: any number."""
    kind: JobKind = "train"
    evaluated: "EvaluatedSae | None" = None
    """Of an evaluation, the SAE."""
    subject_dtype: str | None = None
    """What an earlier attempt of a training settled `subject.dtype: auto` to."""
    measured: tuple[str, ...] = ()
    """Of an evaluation, the metric families that an earlier attempt has measured."""

    @property
    def job_config(self) -> "JobConfig":
        """Return the config of a training."""
        from orchestrator.config.job import JobConfig

        assert isinstance(self.config, JobConfig)
        return self.config

    @property
    def cursor(self) -> int:
        """Return the tokens it goes on from, if its newest checkpoint can be read."""
        return self.checkpoints[0].tokens_seen if self.checkpoints else 0


@dataclass(frozen=True)
class Enqueued:
    """What became of each config of a sweep."""

    sweep_id: int
    job_ids: tuple[int | None, ...]
    """By the config's position; None = the sweep holds it already."""
    evaluations: tuple[int, ...] = ()
    """New evaluation jobs, of SAEs that the sweep has trained already."""

    @property
    def added(self) -> int:
        """Return the number of new jobs."""
        return len(self.job_ids) - self.skipped

    @property
    def skipped(self) -> int:
        """Return the number of configs that were there already."""
        return self.job_ids.count(None)


@dataclass(frozen=True)
class Result:
    """What training came to; fvu, dead share and l0 are those of the last stored curve point."""

    outcome: Outcome
    tokens_seen: int
    untrained_fvu: float
    """fvu of the untrained, tied initialisation on the same held-out set."""
    artifact_uri: str | None
    """Where the final SAE lies; None when the job diverged before there was one."""
    wall_seconds: float
    flops_dense: float
    flops_executed: float
    flops_subject: float


class Change(NamedTuple):
    """What a request did to one job."""

    job_id: int
    state: State
    """Its state now."""
    effect: str
    """In words: `cancelled`, `asked to stop`, `already succeeded`."""
