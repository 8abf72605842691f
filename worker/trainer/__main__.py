"""The trainer: the jobs of one order, one process, no database. It reads the order on stdin, answers in JSON lines."""

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.config.activation_functions import ACTIVATIONS
from orchestrator.config.job import JobConfig
from orchestrator.config.synthetic import is_synthetic
from orchestrator.errors import CheckpointError, ConfigError, SubjectError
from worker.protocol import Assignment, Cached, Exit, Failure, Order, Started
from worker.trainer.channel import SupervisorChannel

# torch and transformers take seconds to load: they are imported where they are used, once the line to the supervisor
# stands, so that an attempt can be ended while they load.
if TYPE_CHECKING:
    from worker.activations.cached_forward import Store
    from worker.activations.source import ActivationSource, HookSlots
    from worker.sae.train_state import TrainState
    from worker.subject.model import Subject
    from worker.trainer.job import JobTraining
    from worker.trainer.rank_processes import RankProcesses


class TrainerContext(NamedTuple):
    """What the jobs of an order are trained with."""

    order: Order
    line: SupervisorChannel
    places: "HookSlots"
    device: str
    """The first one, of several."""
    partners: "RankProcesses | None"
    """The processes on the other devices that share each job."""

    @property
    def home(self) -> str:
        """Return where whole trainees are: those that are dealt out need not fit on one device."""
        return "cpu" if self.partners else self.device


def main() -> int:
    """Carry out one order; return the exit status."""
    line = SupervisorChannel()
    try:
        return carry_out(line.order(), line)
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor shall hear of it
        traceback.print_exc()
        failure = Failure.of(error)
        with suppress(OSError):
            line.send(failure)
        return failure.code


def carry_out(order: Order, line: SupervisorChannel) -> Exit:
    """Train each job from its newest checkpoint to its end, or to the moment the trainer is told to yield."""
    from worker.trainer.shared_training import SharedTraining, apart

    desk = _gather(order, line)
    members: list[JobTraining] = []
    for job in order.jobs:
        line.alive(0, phase="starting")
        with apart(line, job.job_id):
            members.append(_enrol(desk, job))
    desk.places.forget()
    line.training_from({member.job_id: member.tokens_seen for member in members})
    done = SharedTraining(members, line, places=desk.places, save_every=order.checkpoint_seconds).run()
    if desk.partners:
        desk.partners.end()
    return done


def _gather(order: Order, line: SupervisorChannel) -> TrainerContext:
    partners = _partners(order, line)  # they load torch while we do
    import torch

    from worker.activations.source import HookSlots
    from worker.trainer.accelerator import choose

    torch.set_num_threads(max(1, order.threads // len(order.device.split("+"))))
    device = choose(order.device)
    return TrainerContext(order, line, HookSlots(_material(order, line, device)), device, partners)


def _material(order: Order, line: SupervisorChannel, device: str) -> "ActivationSource":
    config = order.jobs[0].config
    if is_synthetic(config.subject.model):
        from worker.activations.synthetic_source import SyntheticActivations

        return SyntheticActivations(config.subject.model, device)
    from worker.activations.model_source import ModelActivations
    from worker.data import token_file

    model = _load(order, device)
    line.alive(0, phase="packing")
    folder = Path(order.tokens_folder)
    packed = token_file.pack(config.data, model.tokenizer, folder, lambda _: line.alive(0, phase="packing"))
    return ModelActivations(model, packed, config, store=_store(order, line))


def _store(order: Order, line: SupervisorChannel) -> "Store | None":
    if not order.caches_folder or all(job.config.data.activations != "cache" for job in order.jobs):
        return None
    from worker.activations.cached_forward import Store

    folder = Path(order.caches_folder)
    return Store(folder, order.cache_bytes, heard=lambda stored: line.send(Cached(*stored)))


def _partners(order: Order, line: SupervisorChannel) -> "RankProcesses | None":
    from worker.devices import seen
    from worker.trainer.rank_processes import RankProcesses

    def failed(failure: Failure) -> None:
        line.send(failure)
        os._exit(failure.code)

    devices = seen(order.device) if "+" in order.device else []
    if not all(_can_be_divided(job.config, len(devices)) for job in order.jobs):
        return None  # it is trained on the first device alone: which worker claimed it must not decide its fate
    return RankProcesses(devices, threads=max(1, order.threads // len(devices)), failed=failed) if devices else None


def _can_be_divided(config: JobConfig, n_devices: int) -> bool:
    sae = config.sae
    return ACTIVATIONS[sae.activation].selects_per_token and (sae.n_latents is None or sae.n_latents >= n_devices)


def _load(order: Order, device: str) -> "Subject":
    """Load the model at the hook point of the first job that names one which is there."""
    from worker.subject import model as subject

    for job in order.jobs[:-1]:
        with suppress(ConfigError):  # that job will be told when its turn comes
            return subject.load(job.config.subject, device)
    return subject.load(order.jobs[-1].config.subject, device)


def _enrol(desk: TrainerContext, job: Assignment) -> "JobTraining":
    """Let a job take its place, at its newest checkpoint or at the start, and say so."""
    from worker.sae.compiled.compiled_step import stepper
    from worker.trainer.accelerator import check_precision
    from worker.trainer.job import JobTraining

    check_precision(job.config, desk.device)
    place = desk.places.find(job.config)
    trainee = _resumed(desk, job) or _fresh(desk, job, place)
    heldout = desk.places.all[place].heldout
    if desk.partners:
        trainee = desk.partners.divide(trainee, job.config, heldout=heldout)
    wanted, folder = desk.order.compile, Path(desk.order.compile_folder)
    step, way = stepper(trainee, job.config, wanted=wanted, folder=folder / "kernels", say=_warn)
    facts = {**_facts(desk, job, trainee, place=place), "step": way}
    desk.line.send(Started(trainee.tokens_seen, facts), job.job_id)
    return JobTraining(job, trainee, desk.line, heldout=heldout, place=place, facts=facts, step=step)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _resumed(desk: TrainerContext, job: Assignment) -> "TrainState | None":
    from worker.trainer import checkpoint

    refs = [(_inside(saved.uri, Path(job.artifacts).parent), saved.sha256) for saved in job.resume]
    found = checkpoint.newest_readable(refs, job.config, device=desk.home)
    if found is None:
        return None
    uri, trainee = found
    _refuse_other_material(checkpoint.facts_of(uri), desk.places.material.facts(job.config))
    return trainee


def _inside(uri: str, folder: Path) -> str:
    """Return where a checkpoint is; refuse one that is not among those of its job, whatever the database says."""
    if not Path(uri).resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(
            f"the checkpoint {uri} is not in {folder}",
            hint="Set ORCH_ARTIFACTS, or ORCH_HOME where that is not set, to what it was when this job began.",
        )
    return uri


def _refuse_other_material(before: dict[str, Any], here: dict[str, Any]) -> None:
    """Never continue a curve on another model or another text: its held-out set would be another, too."""
    then, now = (
        {"model": facts.get("subject", {}).get("sha256"), "text": facts.get("tokens", {}).get("id")}
        for facts in (before, here)
    )
    for what, digest in now.items():
        if digest and then[what] not in (None, digest):
            raise SubjectError(
                f"the {what} is not the one this job began with (sha256 {digest[:12]}, then {str(then[what])[:12]})",
                hint="Bring the old one back, or start over: orch enqueue --allow-duplicate",
            )


def _fresh(desk: TrainerContext, job: Assignment, place: int) -> "TrainState":
    from worker.sae.train_state import TrainState

    return TrainState.fresh(job.config, desk.places.sample(place).to(desk.home))


def _facts(desk: TrainerContext, job: Assignment, trainee: "TrainState", *, place: int) -> dict[str, Any]:
    """Return what the config left open and this attempt settled."""
    from orchestrator.versions import git_commit, versions

    heldout, commit = desk.places.all[place].heldout, git_commit()
    return {
        **trainee.facts(),
        "device": "+".join(desk.partners.devices) if desk.partners else desk.device,
        "threads": desk.order.threads,
        "heldout_tokens": len(heldout),
        "shared_with": [other.job_id for other in desk.order.jobs if other is not job],
        **desk.places.material.facts(job.config),
        "versions": versions(),
        **({"git_commit": commit} if commit else {}),
    }


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # torch takes a while to clean up what the system frees anyway
