"""One training on several devices: the first process leads it, the others take the same steps on the same batches.

The leader captures, saves and decides; before each step it says which: a batch (broadcast), a gathering of the parts
(for a checkpoint), or the end. So `training.train` is the one loop, and it runs in every process alike.
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
from orchestrator.config.validation import parse
from worker.sae.sharded.model import check_divisible
from worker.sae.sharded.shard import Shard, broadcast_json, peer_errors
from worker.sae.sharded.train_state import ShardedTrainState
from worker.sae.train_state import TrainState
from worker.trainer.train import train

_PATIENCE = datetime.timedelta(days=1)
"""A process that died is noticed by the leader at once, one that hangs by the supervisor: this must not end a pause."""


class _Word(IntEnum):
    """What the leader says."""

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
    place = store.absolute().as_uri()
    dist.init_process_group(backend, init_method=place, rank=rank, world_size=size, timeout=_PATIENCE)


class Leader:
    """The first process's side of a training on all joined processes: its `trainee` is trained like any other."""

    def __init__(
        self, whole: TrainState, *, config: JobConfig, heldout: Float[Tensor, "n_tokens d_model"], device: str
    ) -> None:
        """Deal out a trainee: each process takes its part, and the held-out set.

        Raises:
            ConfigError: a config that cannot be divided; nothing has been said to the others then.
        """
        check_divisible(config.sae)
        shard = Shard(whole.model.n_latents, 0, dist.get_world_size())
        broadcast_json([json.loads(config.canonical_json()), [*heldout.shape]])
        self.trainee = ShardedTrainState.scatter(whole, config, shard=shard, device=device)
        self.trainee.before_gathering = lambda: _say(_Word.GATHER)
        self.trainee.before_step = _give
        dist.broadcast(heldout.contiguous(), 0)

    def end(self, *, patience: float) -> None:
        """Let the other processes go.

        Raises:
            TrainingError: for so many seconds one did not listen; it is in the middle of a step that we broke off.
        """
        with peer_errors():
            said = dist.broadcast(torch.tensor([_Word.END, 0]), 0, async_op=True)
            said.wait(datetime.timedelta(seconds=patience))
        dist.destroy_process_group()


def follow(device: str) -> None:
    """Be another process of one training, from `Leader` to `Leader.end`."""
    described, shape = broadcast_json(None)
    config = parse(described)
    shard = Shard(config.sae.latents(shape[1]), dist.get_rank(), dist.get_world_size())
    trainee = ShardedTrainState.scatter(None, config, shard=shard, device=device)
    heldout = torch.empty(shape, device=device)
    dist.broadcast(heldout, 0)
    batches = _heard(trainee, shape[1], device)
    for _ in train(trainee, batches, config=config, heldout=heldout):
        pass
    for _ in batches:  # the budget is used up; the leader still saves
        raise AssertionError("a batch after the last one")
    dist.destroy_process_group()


def _heard(trainee: ShardedTrainState, d_model: int, device: str) -> Iterator[Tensor]:
    while True:
        said = torch.zeros(2, dtype=torch.int64)
        dist.broadcast(said, 0)
        word, n_tokens = said.tolist()
        if word == _Word.END:
            return
        if word == _Word.GATHER:
            trainee.tensors()
            continue
        batch = torch.empty(n_tokens, d_model, device=device)
        dist.broadcast(batch, 0)
        yield batch


def _give(batch: Tensor) -> None:
    _say(_Word.BATCH, len(batch))
    with peer_errors():
        dist.broadcast(batch.contiguous(), 0)


def _say(word: _Word, number: int = 0) -> None:
    with peer_errors():
        dist.broadcast(torch.tensor([word, number]), 0)
