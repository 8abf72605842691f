"""The trainer: one job, one process, no database. It reads an order on stdin and answers in JSON lines."""

import math
import os
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.errors import ConfigError, OutOfMemory, SubjectError
from worker.line import Line
from worker.protocol import Ended, Exit, Failure, Measured, Order, Saved, Started

# torch and transformers take seconds to load: they are imported where they are used, once the line to the supervisor
# stands, so that an attempt can be ended while they load.
if TYPE_CHECKING:
    from torch import Tensor

    from worker.sae.trainee import Trainee
    from worker.subject import Subject
    from worker.tokens import TokenFile

SAMPLE_TOKENS = 16_384
"""Normalised activations that μ, v and the geometric median are measured on."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_LOWER = "Lower training.batch_tokens, training.shuffle_tokens, sae.n_latents or data.context_length."


class Material(NamedTuple):
    """What a job is trained with."""

    subject: "Subject"
    tokens: "TokenFile"
    heldout: "Tensor"
    device: str


def main() -> int:
    """Carry out one order; return the exit status."""
    line = Line()
    try:
        return train_job(line.order(), line)
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor shall hear of it
        traceback.print_exc()
        code, hint = _judged(error)
        with suppress(OSError):
            line.send(Failure(type(error).__name__, getattr(error, "message", "") or str(error) or repr(error), hint))
        return code


def train_job(order: Order, line: Line) -> Exit:
    """Train one job from its newest checkpoint to its end, or to the moment it is told to yield."""
    material = _gather(order, line)
    trainee = _resumed(order, material) or _fresh(order, material)
    facts = _facts(order, material, trainee)
    line.send(Started(trainee.tokens_seen, facts))
    line.training_from(trainee.tokens_seen)
    outcome = _verdict(order, trainee) or _train(order, line, material, trainee=trainee, facts=facts)
    if outcome is None:
        return Exit.YIELDED
    _end(order, line, outcome, trainee=trainee, facts=facts)
    return Exit.DONE


def _gather(order: Order, line: Line) -> Material:
    import torch

    from worker import activations, subject, tokens
    from worker.device import choose

    torch.set_num_threads(order.threads)
    device = choose(order.device)
    model = subject.load(order.config.subject, device)
    line.alive(0, phase="packing")
    folder = Path(order.tokens_folder)
    packed = tokens.pack(order.config.data, model.tokenizer, folder, lambda _: line.alive(0, phase="packing"))
    return Material(model, packed, activations.heldout(model, packed, order.config), device)


def _resumed(order: Order, material: Material) -> "Trainee | None":
    from worker import checkpoint

    refs = [(saved.uri, saved.sha256) for saved in order.resume]
    found = checkpoint.newest_readable(refs, order.config, device=material.device)
    if found is None:
        return None
    uri, trainee = found
    _refuse_other_material(checkpoint.facts_of(uri), material)
    return trainee


def _refuse_other_material(before: dict[str, Any], material: Material) -> None:
    """Never continue a curve on another model or another text: its held-out set would be another, too."""
    now = {"model": material.subject.fingerprint, "text": material.tokens.id}
    then = {"model": before.get("subject", {}).get("sha256"), "text": before.get("tokens", {}).get("id")}
    for what, digest in now.items():
        if then[what] not in (None, digest):
            raise SubjectError(
                f"the {what} is not the one this job began with (sha256 {digest[:12]}, then {str(then[what])[:12]})",
                hint="Bring the old one back, or start over: orch enqueue --allow-duplicate",
            )


def _fresh(order: Order, material: Material) -> "Trainee":
    from worker.activations import sample
    from worker.sae.trainee import Trainee

    return Trainee.fresh(order.config, sample(material.subject, material.tokens, order.config, SAMPLE_TOKENS))


def _train(order: Order, line: Line, material: Material, *, trainee: "Trainee", facts: dict[str, Any]) -> str | None:
    """Train and report; return the outcome, or None when told to yield."""
    from worker.activations import stream
    from worker.training import train

    batches = stream(material.subject, material.tokens, order.config, start_tokens=trainee.tokens_seen)
    steps = train(
        trainee, batches, config=order.config, heldout=material.heldout,
        flops_subject_per_token=facts["flops_subject_per_token"],
    )  # fmt: skip
    saved_at = time.monotonic()
    for progress in steps:
        line.alive(progress.tokens_seen)
        if progress.point is not None:
            line.send(Measured(progress.point))
            if outcome := _verdict(order, trainee):
                return outcome
        if line.must_yield or time.monotonic() - saved_at >= order.checkpoint_seconds:
            _save(order, line, trainee, facts)
            saved_at = time.monotonic()
        if line.must_yield:
            return None
    return "max_tokens"


def _verdict(order: Order, trainee: "Trainee") -> str | None:
    """Say what the curve means so far: a pure function of it, so that a resumed job ends where any other does."""
    from orchestrator.convergence import has_converged, has_diverged

    stop, budget = order.config.stop, order.config.training.max_tokens
    curve = [(point.tokens_seen, point.fvu) for point in trainee.curve]
    if has_diverged(curve, max_tokens=budget):
        return "diverged"
    if stop.rule == "plateau" and has_converged(curve, epsilon=stop.epsilon):
        return "converged"
    return "max_tokens" if trainee.tokens_seen >= budget else None


def _save(order: Order, line: Line, trainee: "Trainee", facts: dict[str, Any]) -> None:
    from worker import checkpoint

    folder = Path(order.artifacts)
    line.send(Saved(*checkpoint.save(folder, trainee, order.config, facts=facts)))


def _end(order: Order, line: Line, outcome: str, *, trainee: "Trainee", facts: dict[str, Any]) -> None:
    """Put the final autoencoder in its place and send the result."""
    from worker import checkpoint
    from worker.training import flops

    uri = None
    if outcome != "diverged":
        _save(order, line, trainee, facts)
        uri = checkpoint.save_final(Path(order.artifacts), trainee, order.config, facts=facts).uri
    dense, executed = flops(trainee, order.config.sae)
    line.send(
        Ended(
            outcome=outcome,
            tokens_seen=trainee.tokens_seen,
            untrained_fvu=math.nan if trainee.untrained_fvu is None else trainee.untrained_fvu,
            artifact_uri=uri,
            wall_seconds=trainee.wall_seconds,
            flops_dense=dense,
            flops_executed=executed,
            flops_subject=facts["flops_subject_per_token"] * trainee.tokens_seen,
        )
    )


def _facts(order: Order, material: Material, trainee: "Trainee") -> dict[str, Any]:
    """Return what the config left open and this attempt settled."""
    from worker.activations import captured_per_vector
    from worker.origin import git_commit, versions

    subject, tokens = material.subject, material.tokens
    commit = git_commit()
    return {
        **trainee.facts(),
        "device": material.device,
        "threads": order.threads,
        "heldout_tokens": len(material.heldout),
        "subject": {
            "class": type(subject.model).__name__,
            "parameters": sum(p.numel() for p in subject.model.parameters()),
            "parameters_run": subject.parameters_run,
            "n_layers": subject.n_layers,
            "hook": subject.hook.name,
            "site": str(subject.hook),
            "sha256": subject.fingerprint,
        },
        "tokens": {"id": tokens.id, "n_tokens": tokens.n_tokens},
        "flops_subject_per_token": 2.0 * subject.parameters_run * captured_per_vector(tokens, order.config),
        "versions": versions(),
        **({"git_commit": commit} if commit else {}),
    }


def _judged(error: Exception) -> tuple[Exit, str]:
    """Return the exit status of an error, and what to do about it."""
    hint = getattr(error, "hint", "")
    if isinstance(error, ConfigError | SubjectError):
        return Exit.BAD_CONFIG, hint
    is_memory = isinstance(error, MemoryError | OutOfMemory) or type(error).__name__ == "OutOfMemoryError"
    if is_memory or (isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)):
        return Exit.OUT_OF_MEMORY, hint or _LOWER
    return Exit.INTERNAL, hint


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # torch takes a while to clean up what the system frees anyway
