"""The rows the read side hands out. Times are epoch seconds by the database's clock, spans are seconds."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class JobRow:
    """One job as a person sees it."""

    id: int
    sweep: str
    state: str
    desired: str
    """run, pause or cancel: the state asked for."""
    priority: int
    attempt: int
    failures: int
    preemptions: int
    n_latents: int | None
    """None = expansion × d_model, known once the subject has been seen."""
    k: int
    lr: float | None
    """What it trains with; None = auto, and no attempt has begun yet."""
    seed: int
    d_model: int | None
    max_tokens: int
    tokens_seen: int
    tokens_per_second: float | None
    """Of a running job."""
    fvu: float | None
    dead_share: float | None
    """None also where no latent could be dead yet: `results.auto_values`."""
    l0: float | None
    """Mean active latents per held-out token, as measured."""
    outcome: str | None
    """converged, max_tokens, not_learning or diverged."""
    tokens_to_convergence: float | None
    """At epsilon 0.01; None when censored."""
    tokens_lower_bound: float | None
    """What a censored count is known to exceed."""
    tokens_low: float | None
    """Ends of the 90% interval of tokens_to_convergence; None when censored, or analysed before there was one."""
    tokens_high: float | None
    l_inf: float | None
    l_inf_se: float | None
    """Standard error of l_inf: 90% of limits lie within 1.645 of them."""
    untrained_fvu: float | None
    wall_seconds: float | None
    """Training time over all attempts."""
    created_at: float
    started_at: float | None
    """Of the newest attempt."""
    finished_at: float | None
    age: float
    """Since it was enqueued."""
    worker: str | None
    """Of the newest attempt."""
    lease_left: float | None
    """Of a running job; below 0 = the worker no longer renews it."""
    reason: str | None
    """Why it is not running, or why it ended as it did."""
    config_id: str
    mlflow_run_id: str | None
    artifact_uri: str | None
    labels: dict[str, str]
    expected_tokens: int | None = None
    """Where its own curve says that it will stop, of a running job that stops on a plateau; max_tokens at most."""
    swept: dict[str, Any] = field(default_factory=dict)
    """The dotted keys, but n_latents and k, that set its config apart from the others asked for of its sweep."""
    trainable_tokens: int | None = None
    """Of one pass over its text; None before the newest attempt has told, and where there is no text."""
    hidden: str | None = None
    """hidden or deleted: no list has it."""
    asked_max_tokens: int | None = None
    """The budget it was enqueued with, where `orch extend` has given it another."""
    passes: float | None = None
    """Over its text, in the whole budget: above 1, tokens are trained on more than once."""
    kind: str = "train"
    """train, evaluate or lens; of an evaluation max_tokens are the tokens it measures on; values of a curve are of
    trainings alone."""


def flat_jobs(rows: Sequence[JobRow]) -> list[dict[str, Any]]:
    """Return jobs as values by name, the same names for all: the fields, and each swept key of any of them."""
    keys = dict.fromkeys(key for row in rows for key in row.swept)
    names = [one.name for one in fields(JobRow)]
    return [{name: getattr(row, name) for name in names} | {key: row.swept.get(key) for key in keys} for row in rows]


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One sweep, its training jobs and its evaluations by state."""

    id: int
    name: str
    labels: dict[str, str]
    paused: bool
    max_parallel: int | None
    run_cap: int | None
    max_failures: int
    created_at: float
    mlflow_experiment_id: str | None
    counts: dict[str, int]
    """Every state, also those without a job."""
    evaluations: dict[str, int]

    @property
    def jobs(self) -> int:
        """Return the number of training jobs."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker at work, by the lease it holds."""

    worker: str
    host: str
    pid: int
    device: str
    job_id: int
    attempt: int
    sweep: str
    started_at: float
    tokens_seen: int
    tokens_per_second: float | None
    lease_left: float
    progress_age: float
    """Since tokens_seen last grew."""


@dataclass(frozen=True, slots=True)
class RegisteredWorker:
    """One worker process, as it registered itself, with the jobs whose leases it holds."""

    token: str
    name: str
    host: str
    pid: int
    device: str
    version: str
    state: str
    """at work, idle, unwell, draining, stopping, lost or ended."""
    unwell: str | None
    """What is wrong with its machine: it claims nothing for that."""
    jobs: tuple[int, ...]
    tokens_per_second: float | None
    """Of all its jobs."""
    started_at: float
    seen_at: float
    silent: float
    """Since its last report."""
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The queue as a whole; totals are over all that was ever tried."""

    jobs: dict[str, int]
    """Training jobs by state."""
    evaluations: dict[str, int]
    """Evaluation jobs by state."""
    lenses: dict[str, int]
    """Jobs that train tuned lenses, by state."""
    paused_at: float | None
    """None: the queue is open."""
    oldest_queued_age: float | None
    """Since the job that has been queued longest was enqueued."""
    running: dict[str, int]
    """Running jobs of every kind by the device of their worker."""
    tokens_per_second: float
    """Of all SAEs that train now."""
    lease_slack: float | None
    """Of the lease that runs out first; below 0: its worker no longer renews it."""
    tokens_trained: int
    """SAEs, by all attempts, what was trained again after a loss included."""
    attempts: dict[str, int]
    """All that ended: results of SAEs, evaluations, lenses, failures, preemptions, lost, other (paused, cancelled)."""
    last_hour: dict[str, int]
    """The same, of those that ended in the last hour, and their tokens."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One try of a job."""

    job_id: int
    attempt: int
    worker: str
    host: str
    pid: int
    device: str
    started_at: float
    ended_at: float | None
    outcome: str | None
    exit_code: int | None
    tokens_start: int | None
    tokens_end: int | None
    mlflow_run_id: str | None
    facts: dict[str, Any] | None
    error: str | None


@dataclass(frozen=True, slots=True)
class EventRow:
    """Something that happened."""

    id: int
    job_id: int | None
    sweep_id: int | None
    attempt: int | None
    at: float
    kind: str
    data: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """Where a checkpoint lies."""

    job_id: int
    tokens_seen: int
    attempt: int
    uri: str
    sha256: str
    created_at: float


@dataclass(frozen=True, slots=True)
class ConvergenceRow:
    """tokens_to_convergence at one epsilon."""

    job_id: int
    epsilon: float
    tokens: float | None
    """None when censored."""
    lower_bound: float | None
    low: float | None
    """Ends of its 90% interval; None when censored."""
    high: float | None
