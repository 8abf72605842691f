"""Start the jobs of an order: each from its newest readable checkpoint, or fresh."""

import sys
from pathlib import Path
from typing import Any

from orchestrator.errors import shared_error
from orchestrator.versions import git_commit, versions
from worker.accelerator import check_precision
from worker.activations.source import refuse_other_source
from worker.protocol import Assignment, CurvePointMessage, Started
from worker.sae.compiled.compiled_step import stepper
from worker.sae.train_state import TrainState
from worker.trainer import checkpoint
from worker.trainer.context import TrainerContext
from worker.trainer.job import JobTraining
from worker.trainer.shared_training import isolate_failure


def start_jobs(context: TrainerContext) -> list[JobTraining]:
    """Start every job of the order; one that cannot be started is reported, and the others go on."""
    started: list[JobTraining] = []
    for job in context.order.jobs:
        context.channel.alive(0, phase="starting")
        with isolate_failure(context.channel, job.job_id):
            started.append(start_job(context, job))
    context.slots.forget()
    return started


def start_job(context: TrainerContext, job: Assignment) -> JobTraining:
    """Start a job at its newest checkpoint, or fresh, and report it.

    Raises:
        ConfigError, SubjectError, CheckpointError, StorageError: it cannot be trained here.
    """
    check_precision(job.config, context.device)
    context.slots.source.open_lens(job.config)  # what is wrong with it is not wrong with other jobs of this place
    with shared_error("place"):
        slot = context.slots.find(job.config)
    place = context.slots.all[slot]
    heldout = place.heldout
    state = _resume(context, job) or _fresh(context, job, slot)
    if context.ranks:
        state = context.ranks.divide(state, job.config, heldout=heldout)
    order = context.order
    step, way = stepper(state, job.config, wanted=order.compile, folder=order.kernels_folder, say=_warn)
    facts = {**_facts(context, job, state, n_heldout=len(heldout) // place.n_layers), "step": way}
    context.channel.send(Started(state.tokens_seen, facts), job.job_id)
    recorded = max((saved.tokens_seen for saved in job.resume), default=0)
    for point in state.curve:  # of a checkpoint that the database does not know, perhaps
        if recorded < point.tokens_seen <= state.tokens_seen:
            context.channel.send(CurvePointMessage(point), job.job_id)
    return JobTraining(job, state, context.channel, heldout=heldout, slot=slot, facts=facts, step=step)


def _resume(context: TrainerContext, job: Assignment) -> TrainState | None:
    folder, recorded = Path(job.artifacts).parent, [saved.uri for saved in job.resume]
    found = checkpoint.newest_readable(recorded, job.config, folder=folder, device=context.state_device)
    if found is None:
        return None
    uri, state = found
    refuse_other_source(
        checkpoint.facts_of(uri), context.slots.source.facts(job.config), whose="this job began with",
        otherwise="To start over: orch enqueue --allow-duplicate",
    )  # fmt: skip
    return state


def _fresh(context: TrainerContext, job: Assignment, slot: int) -> TrainState:
    sample, n_layers = context.slots.sample(slot), context.slots.all[slot].n_layers
    return TrainState.fresh(job.config, sample.to(context.state_device), n_layers=n_layers)


def _facts(context: TrainerContext, job: Assignment, state: TrainState, *, n_heldout: int) -> dict[str, Any]:
    """Return what the config left open and this attempt settled."""
    commit = git_commit()
    return {
        **state.facts(),
        "device": "+".join(context.ranks.devices) if context.ranks else context.device,
        "threads": context.order.threads,
        "max_tokens": job.config.training.max_tokens,
        "heldout_tokens": n_heldout,
        "shared_with": [other.job_id for other in context.order.jobs if other is not job],
        **context.slots.source.facts(job.config),
        "versions": versions(),
        **({"git_commit": commit} if commit else {}),
    }


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)
