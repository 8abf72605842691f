"""The tables. Every time is epoch seconds by the DATABASE's clock; a float that is not finite is stored as NULL."""

from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from orchestrator.database.evaluation_models import MeasuredFamily as MeasuredFamily
from orchestrator.database.evaluation_models import ScoreRow as ScoreRow
from orchestrator.database.lens_models import LensPointRow as LensPointRow
from orchestrator.database.lens_models import LensRow as LensRow
from orchestrator.database.table import Finite as Finite
from orchestrator.database.table import Table as Table

LIVE = text("state NOT IN ('failed', 'cancelled')")
"""The condition of the partial index (the states that are not FREED), letter for letter: only so may a query use it."""

HIDDEN = text("hidden IS NOT NULL")
"""The condition of the partial index of hidden jobs: they are few, and what is shown is all jobs but these."""

EVALUATION = text("kind <> 'train'")
"""The condition of the partial index of jobs that train no SAE: what is counted of trainings is all jobs but these."""


class SweepRow(Table):
    """A named set of jobs."""

    __tablename__ = "sweeps"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    text: Mapped[str]
    labels: Mapped[dict[str, Any]]
    max_parallel: Mapped[int | None]
    run_cap: Mapped[int | None]
    max_failures: Mapped[int]
    paused: Mapped[bool]
    created_at: Mapped[float]
    mlflow_experiment_id: Mapped[str | None]
    evaluation: Mapped[str | None]
    """What is measured of each of its SAEs once it is trained: an `EvaluationPlan` as JSON. NULL: nothing."""
    arriving_after: Mapped[int | None]
    """While a submission is under way, or has been cut off: its jobs are those of the sweep with a higher id, and none
    of them is claimed before all are there. NULL: all are."""


class Job(Table):
    """One config in the queue. Only `orchestrator.queue` writes its state."""

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint("(state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)", name="finished"),
        Index("ix_jobs_claim", "state", text("priority DESC"), "id", "sweep_id"),
        Index("ix_jobs_sweep_state", "sweep_id", "state"),
        Index("ix_jobs_stream", "stream_key", "state", text("priority DESC"), "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    sweep_id: Mapped[int] = mapped_column(ForeignKey("sweeps.id"))
    kind: Mapped[str] = mapped_column(server_default="train")
    """train, evaluate or lens: which config it has, which process runs it, and what it comes to."""
    sae_id: Mapped[int | None]
    """Of an evaluation, the SAE. No foreign key: rows of saes have one to jobs already."""
    config_id: Mapped[str]
    """Of the config it was enqueued with, for good."""
    replica: Mapped[int]
    config: Mapped[str]
    """What it trains: the config it was enqueued with, or that with the budget of `orch extend`. Of an evaluation an
    `EvaluationConfig`, and max_tokens the tokens it measures on, k 0 where the SAE has no such number. Of a lens a
    `LensConfig`, and k 0."""
    asked_config: Mapped[str | None]
    """The config it was enqueued with, where `config` is another."""
    hidden: Mapped[str | None]
    """hidden or deleted, of an ended job: no list, count, law or report has it. No number is given twice."""
    n_latents: Mapped[int | None]
    d_model: Mapped[int | None]
    k: Mapped[int]
    max_tokens: Mapped[int] = mapped_column(BigInteger)
    seed: Mapped[int] = mapped_column(BigInteger)
    lr: Mapped[float | None]
    """The learning rate asked for; NULL = auto, and attempts.facts has what it came to."""
    priority: Mapped[int]
    state: Mapped[str]
    desired: Mapped[str]
    attempt: Mapped[int]
    failures: Mapped[int]
    preemptions: Mapped[int]
    lost_in_row: Mapped[int]
    not_before: Mapped[float]
    created_at: Mapped[float]
    finished_at: Mapped[float | None]
    reason: Mapped[str | None]
    mlflow_run_id: Mapped[str | None]
    stream_key: Mapped[str | None]
    """Identifies the activations it trains on; jobs of one key can share a trainer. NULL = trained alone."""
    company: Mapped[int | None]
    """Most jobs of its next trainer, this one included: half as many as were in one that crashed. NULL = any."""


class Attempt(Table):
    """One try of a job; appended by the claim, closed once."""

    __tablename__ = "attempts"
    __table_args__ = (Index("ix_attempts_ended", "ended_at", "outcome", "tokens_start", "tokens_end"),)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str]
    worker: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str | None]
    exit_code: Mapped[int | None]
    tokens_start: Mapped[int | None] = mapped_column(BigInteger)
    tokens_end: Mapped[int | None] = mapped_column(BigInteger)
    mlflow_run_id: Mapped[str | None]
    facts: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]


class LeaseRow(Table):
    """Which attempt may write for a job, and until when. Narrow and unindexed: it is written every few seconds."""

    __tablename__ = "leases"
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    token: Mapped[str] = mapped_column(unique=True)
    expires_at: Mapped[float]
    tokens_seen: Mapped[int] = mapped_column(BigInteger)
    tokens_per_second: Mapped[float | None] = mapped_column(Finite)
    fvu: Mapped[float | None] = mapped_column(Finite, deferred=True)
    """Neither written nor read. Workers of schema 0005's versions write it with every point, and stay at work over an
    upgrade: a migration of a later release drops it."""
    progress_at: Mapped[float]


class CurvePoint(Table):
    """One evaluation of a job."""

    __tablename__ = "curve_points"
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    tokens_seen: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    attempt: Mapped[int]
    fvu: Mapped[float | None] = mapped_column(Finite)
    fvu_raw: Mapped[float | None] = mapped_column(Finite)
    loss: Mapped[float | None] = mapped_column(Finite)
    aux_loss: Mapped[float | None] = mapped_column(Finite)
    dead_share: Mapped[float | None] = mapped_column(Finite)
    l0: Mapped[float | None] = mapped_column(Finite)
    grad_norm: Mapped[float | None] = mapped_column(Finite)
    wall_seconds: Mapped[float | None] = mapped_column(Finite)
    flops_dense: Mapped[float | None] = mapped_column(Finite)
    flops_executed: Mapped[float | None] = mapped_column(Finite)
    flops_subject: Mapped[float | None] = mapped_column(Finite)
    fvu_averaged: Mapped[float | None] = mapped_column(Finite)
    """NULL from workers of the version before, whose fvu it is."""
    aux_nothing: Mapped[float | None] = mapped_column(Finite)
    """NULL from workers of the version before."""
    sparsity_coef: Mapped[float | None] = mapped_column(Finite)
    """NULL where it is fixed."""
    by_layer: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    """LayerPoints, where the SAE reads several layers."""


class ResultRow(Table):
    """What a job came to; written with the state `succeeded`, and anew by `orch db reanalyse`, from the curve alone."""

    __tablename__ = "results"
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True, autoincrement=False)
    attempt: Mapped[int]
    token: Mapped[str]
    outcome: Mapped[str]
    tokens_seen: Mapped[int] = mapped_column(BigInteger)
    fvu: Mapped[float | None] = mapped_column(Finite)
    fvu_raw: Mapped[float | None] = mapped_column(Finite)
    untrained_fvu: Mapped[float | None] = mapped_column(Finite)
    dead_share: Mapped[float | None] = mapped_column(Finite)
    l0: Mapped[float | None] = mapped_column(Finite)
    l_inf: Mapped[float | None] = mapped_column(Finite)
    l_inf_se: Mapped[float | None] = mapped_column(Finite)
    flops_dense: Mapped[float | None] = mapped_column(Finite)
    flops_executed: Mapped[float | None] = mapped_column(Finite)
    flops_subject: Mapped[float | None] = mapped_column(Finite)
    wall_seconds: Mapped[float | None] = mapped_column(Finite)
    artifact_uri: Mapped[str | None]


class ConvergenceRow(Table):
    """tokens_to_convergence of a job at one epsilon; NULL with a lower bound when censored."""

    __tablename__ = "convergence"
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    epsilon: Mapped[float] = mapped_column(primary_key=True)
    tokens: Mapped[float | None] = mapped_column(Finite)
    lower_bound: Mapped[float | None] = mapped_column(Finite)
    low: Mapped[float | None] = mapped_column(Finite)
    """Ends of the 90% interval of `tokens`."""
    high: Mapped[float | None] = mapped_column(Finite)


class CheckpointRow(Table):
    """Where a checkpoint lies; the pointer, not the bytes."""

    __tablename__ = "checkpoints"
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    tokens_seen: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    uri: Mapped[str]
    sha256: Mapped[str]
    created_at: Mapped[float]


class Event(Table):
    """What happened to a job or a sweep, in order; appended in the transaction that did it."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_job", "job_id", "id"), Index("ix_events_sweep", "sweep_id", "id"))
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"))
    sweep_id: Mapped[int | None] = mapped_column(ForeignKey("sweeps.id"))
    attempt: Mapped[int | None]
    at: Mapped[float]
    kind: Mapped[str]
    data: Mapped[dict[str, Any] | None]


class ActivationCache(Table):
    """A cache of activations on one disk, as last reported; the folder itself is authoritative."""

    __tablename__ = "activation_caches"
    key: Mapped[str] = mapped_column(primary_key=True)
    uri: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str]
    hook: Mapped[str]
    tokens_id: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    shards: Mapped[int]
    complete: Mapped[bool]
    created_at: Mapped[float]
    last_used_at: Mapped[float]


class SaeRow(Table):
    """An SAE, trained here or brought in. Its facts are those of `config.sae_facts.SaeFacts`, by the same names."""

    __tablename__ = "saes"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(unique=True)
    """Given to what was brought in; NULL: the job's number names it."""
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"), unique=True)
    attempt: Mapped[int | None]
    """Of the job, whose result it is."""
    format: Mapped[str]
    """Of the files it came in."""
    source: Mapped[str]
    """Where those files were: a folder, a file or a hub id."""
    sha256: Mapped[str | None]
    """Of the weights as they came; NULL: of a job, whose folder holds its own."""
    uri: Mapped[str]
    """The folder it lies in, in our own format."""
    subject: Mapped[str | None]
    revision: Mapped[str | None]
    hook_point: Mapped[str | None]
    target_hook_point: Mapped[str | None]
    site: Mapped[str | None]
    layers: Mapped[list[int]] = mapped_column(JSON)
    d_model: Mapped[int]
    n_latents: Mapped[int]
    selection: Mapped[str]
    k: Mapped[int | None]
    normalize: Mapped[str]
    subtracts_bias: Mapped[bool]
    dtype: Mapped[str]
    context_length: Mapped[int | None]
    prepend_bos: Mapped[bool | None]
    stated_fvu: Mapped[float | None] = mapped_column(Finite)
    stated_l0: Mapped[float | None] = mapped_column(Finite)
    fvu: Mapped[float | None] = mapped_column(Finite)
    """Measured here, of the vectors as the SAE normalises them."""
    fvu_raw: Mapped[float | None] = mapped_column(Finite)
    """Measured here, of the subject's own activations."""
    l0: Mapped[float | None] = mapped_column(Finite)
    measured_tokens: Mapped[int | None] = mapped_column(BigInteger)
    measured_on: Mapped[str | None]
    """The text."""
    state: Mapped[str]
    """unverified, verified or refused."""
    note: Mapped[str | None]
    """Why."""
    created_at: Mapped[float]


class WorkerRow(Table):
    """One worker process, as it reports itself; which jobs it holds, its leases say."""

    __tablename__ = "workers"
    token: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    version: Mapped[str]
    started_at: Mapped[float]
    seen_at: Mapped[float]
    every_seconds: Mapped[float]
    """Between two of its reports; a worker that misses several counts as lost."""
    desired: Mapped[str]
    """run, drain or stop: the state asked for."""
    ended_at: Mapped[float | None]
    unwell: Mapped[str | None]
    """What is wrong with its machine, while it claims nothing for that; NULL: nothing."""
    machine: Mapped[str | None]
    """What all hosts of one machine, its containers, have in common; NULL: nothing is known."""
    schema: Mapped[str | None]
    """The newest schema that its code knows; NULL: one from before evaluation jobs, which it would not understand."""


class QueuePause(Table):
    """While its one row exists, no job is claimed."""

    __tablename__ = "queue_pause"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    since: Mapped[float]


class FitRow(Table):
    """A scaling law fitted to the jobs of sweeps; superseded by a newer one, never overwritten."""

    __tablename__ = "fits"
    __table_args__ = (Index("ix_fits_newest", "superseded_by", "law"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    law: Mapped[str]
    sweeps: Mapped[str]
    """A JSON list of names, sorted."""
    group: Mapped[str]
    subject: Mapped[str]
    created_at: Mapped[float]
    version: Mapped[str]
    commit: Mapped[str | None]
    superseded_by: Mapped[int | None] = mapped_column(ForeignKey("fits.id"))
    mlflow_run_id: Mapped[str | None]
    payload: Mapped[dict[str, Any]]
    """The fit itself."""


def declare_partial_indexes() -> None:
    """Add the indexes that name dialects. Naming one loads all of it, a fifth of a second for migrations alone."""
    name = "uq_jobs_live_config"
    if all(index.name != name for index in Table.metadata.tables["jobs"].indexes):
        Index(name, Job.sweep_id, Job.config_id, Job.replica, unique=True, sqlite_where=LIVE, postgresql_where=LIVE)
        Index("ix_jobs_hidden", Job.hidden, Job.state, Job.sweep_id, sqlite_where=HIDDEN, postgresql_where=HIDDEN)
        shown = (Job.kind, Job.hidden, Job.state, Job.sweep_id)
        Index("ix_jobs_evaluations", *shown, sqlite_where=EVALUATION, postgresql_where=EVALUATION)
        Index("ix_jobs_sae_id", Job.sae_id, sqlite_where=EVALUATION, postgresql_where=EVALUATION)
