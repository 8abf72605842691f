"""One training on several devices: the process of rank 0 leads it, the others take the same steps on the same batches.

The leader captures, saves and decides; before each step it broadcasts a command: a batch follows, the parts are to be
gathered (for a checkpoint), or the end. So `train.train` is the one loop, and it runs in every process alike.
"""

import datetime
import json
import os
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import from_stored
from worker.sae.sharded.model import check_divisible
from worker.sae.sharded.shard import Shard, broadcast_json, peer_errors
from worker.sae.sharded.train_state import ShardedTrainState
from worker.sae.train_state import TrainState
from worker.trainer.train import train

_TIMEOUT = datetime.timedelta(days=1)
"""A process that died is noticed by the leader at once, one that hangs by the supervisor: this must not end a pause."""


class _Command(IntEnum):
    """What the leader tells the other processes to do next."""

    BATCH = 0
    GATHER = 1
    END = 2


def join(store: Path, *, rank: int, size: int, device: str) -> None:
    """Meet the other processes at `store`, a file that all of them can reach and that was not there before."""
    # The processes share a machine: loopback works where the host's own name does not resolve.
    loopback = "lo" if sys.platform == "linux" else "lo0"
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, loopback)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(
        backend, init_method=store.absolute().as_uri(), rank=rank, world_size=size, timeout=_TIMEOUT
    )


class Leader:
    """The side of rank 0 of a training on all joined processes: its `state` is trained like any other."""

    def __init__(
        self, whole: TrainState, *, config: JobConfig, heldout: Float[Tensor, "n_tokens d_model"], device: str
    ) -> None:
        """Divide a state: each process takes its part, and the held-out set.

        Raises:
            ConfigError: a config that cannot be divided; nothing has been sent to the others then.
        """
        check_divisible(config.sae)
        shard = Shard(whole.model.n_latents, 0, dist.get_world_size())
        broadcast_json([json.loads(config.canonical_json()), [*heldout.shape]])
        self.state = ShardedTrainState.scatter(whole, config, shard=shard, device=device)
        self.state.before_gathering = lambda: _send_command(_Command.GATHER)
        self.state.before_step = _send_batch
        dist.broadcast(heldout.contiguous(), 0)

    def end(self, *, timeout: float) -> None:
        """Tell the other processes to end.

        Raises:
            TrainingError: one did not answer for `timeout` seconds; it is in the middle of a step that failed here.
        """
        with peer_errors():
            sending = dist.broadcast(torch.tensor([_Command.END, 0]), 0, async_op=True)
            sending.wait(datetime.timedelta(seconds=timeout))
        dist.destroy_process_group()


def follow(device: str) -> None:
    """Take part in a training as a process of another rank, from `Leader` to `Leader.end`."""
    described, shape = broadcast_json(None)
    config = from_stored(described)
    shard = Shard(config.sae.latents(shape[1]), dist.get_rank(), dist.get_world_size())
    state = ShardedTrainState.scatter(None, config, shard=shard, device=device)
    heldout = torch.empty(shape, device=device)
    dist.broadcast(heldout, 0)
    batches = _received(state, shape[1], device)
    for _ in train(state, batches, config=config, heldout=heldout):
        pass
    for _ in batches:  # the budget is used up; the leader still saves
        raise AssertionError("a batch after the last one")
    dist.destroy_process_group()


def _received(state: ShardedTrainState, d_model: int, device: str) -> Iterator[Tensor]:
    while True:
        message = torch.zeros(2, dtype=torch.int64)
        dist.broadcast(message, 0)
        command, n_tokens = message.tolist()
        if command == _Command.END:
            return
        if command == _Command.GATHER:
            state.tensors()
            continue
        batch = torch.empty(n_tokens, d_model, device=device)
        dist.broadcast(batch, 0)
        yield batch


def _send_batch(batch: Tensor) -> None:
    _send_command(_Command.BATCH, len(batch))
    with peer_errors():
        dist.broadcast(batch.contiguous(), 0)


def _send_command(command: _Command, n_tokens: int = 0) -> None:
    with peer_errors():
        dist.broadcast(torch.tensor([command, n_tokens]), 0)
