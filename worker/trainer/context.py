"""What all jobs of an order share: the device, the activation source, and the processes on further devices."""

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.config.activation_functions import ACTIVATIONS
from orchestrator.config.job import JobConfig
from orchestrator.config.synthetic import is_synthetic
from worker.channel import SupervisorChannel
from worker.devices import trainer_devices
from worker.protocol import Failure, Order
from worker.sae.native.library import begin
from worker.trainer.rank_processes import RankProcesses

# torch takes seconds to load: it is imported where it is used, once the processes on further devices have started.
if TYPE_CHECKING:
    from worker.activations.cached_forward import CacheStore
    from worker.activations.source import ActivationSource, HookSlots


class TrainerContext(NamedTuple):
    """What all jobs of an order are trained with."""

    order: Order
    channel: SupervisorChannel
    slots: "HookSlots"
    device: str
    """The first one, where there are several."""
    ranks: RankProcesses | None
    """The processes on the other devices, which share each job."""

    @property
    def state_device(self) -> str:
        """Return where whole states are kept: one that is divided among devices need not fit on any of them."""
        return "cpu" if self.ranks else self.device


def prepare(order: Order, channel: SupervisorChannel) -> TrainerContext:
    """Start the processes on further devices, choose the device and open the activation source.

    Raises:
        SubjectError, ConfigError, TrainingError: no job of the order can be trained here.
    """
    ranks = _start_ranks(order, channel)  # they load torch while this process does
    _begin_kernels(order)
    import torch

    from worker.accelerator import choose
    from worker.activations.source import HookSlots

    torch.set_num_threads(max(1, order.threads // len(order.device.split("+"))))
    device = choose(order.device)
    return TrainerContext(order, channel, HookSlots(_open_source(order, channel, device)), device, ranks)


def _start_ranks(order: Order, channel: SupervisorChannel) -> RankProcesses | None:
    def fail(failure: Failure) -> None:
        channel.send(failure)
        os._exit(failure.code)

    devices = trainer_devices(order.device) if "+" in order.device else []
    if not devices:
        return None
    if not all(_can_be_divided(job.config, len(devices)) for job in order.jobs):
        return None  # trained on the first device alone: which worker claims a job must not decide whether it can be
    return RankProcesses(devices, threads=max(1, order.threads // len(devices)), on_failure=fail)


def _begin_kernels(order: Order) -> None:
    """Compile the kernels in C while this process loads torch, where it will use them; it may still find a GPU."""
    may_use = order.device in ("auto", "cpu") and order.compile != "off"
    if may_use and order.kernels_folder is not None:
        begin(order.kernels_folder)


def _can_be_divided(config: JobConfig, n_devices: int) -> bool:
    sae = config.sae
    return ACTIVATIONS[sae.activation].selects_per_token and (sae.n_latents is None or sae.n_latents >= n_devices)


def _open_source(order: Order, channel: SupervisorChannel, device: str) -> "ActivationSource":
    config = order.jobs[0].config
    if is_synthetic(config.subject.model):
        from worker.activations.synthetic_source import SyntheticActivations

        return SyntheticActivations(config.subject.model, device)
    from worker.activations.model_source import ModelActivations
    from worker.data import token_file
    from worker.lens.opening import open_lens
    from worker.subject.model import load_at_first

    places = list(dict.fromkeys(job.config.subject.settled(job.subject_dtype) for job in order.jobs))
    model = load_at_first(places, device)
    channel.alive(0, phase="packing")
    folder = Path(order.tokens_folder)
    packed = token_file.pack(config.data, model.tokenizer, folder, lambda _: channel.alive(0, phase="packing"))
    return ModelActivations(
        model, packed, config, store=_cache_store(order, channel), opener=partial(open_lens, Path(order.lenses_folder))
    )


def _cache_store(order: Order, channel: SupervisorChannel) -> "CacheStore | None":
    if not order.caches_folder or all(job.config.data.activations != "cache" for job in order.jobs):
        return None
    from worker.activations.cached_forward import CacheStore

    return CacheStore(Path(order.caches_folder), order.cache_bytes, on_change=channel.send)
