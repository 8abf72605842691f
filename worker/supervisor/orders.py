"""What a process is told of the jobs it is to run, by their kind."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orchestrator import queue
from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.config.evaluation.evaluation import EvaluationConfig
from orchestrator.config.job import JobConfig
from orchestrator.config.lens.facts import LENSES
from orchestrator.config.lens.training import LensConfig
from orchestrator.settings import Settings
from orchestrator.storage import activation_caches, garbage
from worker.evaluation_order import EvaluationAssignment, EvaluationOrder
from worker.lens_order import LensOrder
from worker.protocol import Assignment, Order
from worker.supervisor.attempt_outcome import SupervisorContext
from worker.supervisor.trainer_process import AnyOrder


def order_of(claims: Sequence[queue.Claim], context: SupervisorContext) -> AnyOrder:
    """Return the order for claims: they read one stream, and so are of one kind; a lens is alone."""
    settings, config = context.settings, claims[0].config
    home = settings.home
    shared: dict[str, Any] = {
        "tokens_folder": str(home / "tokens"), "compile_folder": str(home / "compile"), "device": context.device,
        "threads": context.threads, "supervisor": os.getpid(),
    }  # fmt: skip
    saving: dict[str, Any] = {"checkpoint_seconds": settings.checkpoint_seconds}
    using: dict[str, Any] = {"lenses_folder": str(settings.artifacts_folder / LENSES)}
    own: dict[str, Any]
    match config:
        case EvaluationConfig():
            evaluations = tuple(_evaluation(claim, settings) for claim in claims)
            own = {"store_folder": str(home / garbage.SHARED), "compile": settings.compile}
            return EvaluationOrder(jobs=evaluations, **own, **using, **shared)
        case LensConfig():
            lease, artifacts = claims[0].lease, str(settings.artifacts_folder)
            own = {"job_id": lease.job_id, "attempt": lease.attempt, "artifacts": artifacts}
            return LensOrder(config=config, resume=_resume(claims[0], settings), **own, **saving, **shared)
        case JobConfig():
            return Order(
                jobs=tuple(_assignment(claim, settings) for claim in claims),
                compile=settings.compile,
                caches_folder=str(activation_caches.folder(home)),
                cache_bytes=settings.cache_limit,
                may_stay="+" not in context.device and not config.subject.trust_remote_code,
                **using,
                **saving,
                **shared,
            )


def announcement(claim: queue.Claim, pid: int) -> str:
    """Return what a job does and which process does it, for the worker's log."""
    match claim.config:
        case JobConfig(sae=sae):
            size = f"n={sae.n_latents}" if sae.n_latents else f"n={sae.expansion or 8}·d_model"
            return f"{claim.sweep}, {size} k={sae.k}, trainer {pid}"
        case LensConfig(subject=subject):
            return f"lens of {subject.model}, process {pid}"
        case EvaluationConfig(plan=plan):
            label = claim.evaluated.label if claim.evaluated else "an SAE"
            return f"{', '.join(plan.metrics)} of {label}, evaluation {pid}"


def _assignment(claim: queue.Claim, settings: Settings) -> Assignment:
    return Assignment(
        job_id=claim.lease.job_id,
        attempt=claim.lease.attempt,
        config=claim.job_config,
        artifacts=_artifacts(claim, settings),
        resume=_resume(claim, settings),
        subject_dtype=claim.subject_dtype,
    )


def _evaluation(claim: queue.Claim, settings: Settings) -> EvaluationAssignment:
    config, evaluated = claim.config, claim.evaluated
    assert isinstance(config, EvaluationConfig)
    assert evaluated is not None, "the claim of an evaluation has its SAE"
    return EvaluationAssignment(
        job_id=claim.lease.job_id,
        attempt=claim.lease.attempt,
        config=config,
        evaluated=evaluated.model_copy(update={"uri": settings.artifact(evaluated.uri)}),
        artifacts=_artifacts(claim, settings),
        measured=claim.measured,
    )


def _resume(claim: queue.Claim, settings: Settings) -> tuple[CheckpointRef, ...]:
    return tuple(replace(ref, uri=settings.artifact(ref.uri)) for ref in claim.checkpoints)


def _artifacts(claim: queue.Claim, settings: Settings) -> str:
    return str(settings.artifacts_folder / str(claim.lease.job_id) / str(claim.lease.attempt))
