"""Which rows of one sparse autoencoder a process holds, and how the processes that share it add and exchange."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from orchestrator.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class Shard:
    """Rows [rank · n / size, (rank + 1) · n / size) of W_enc, b_enc, W_dec; whole numbers, rounded down.

    Every process of the group makes the same calls in the same order; with a size of 1 nothing is sent.
    """

    n_latents: int
    """Of the whole autoencoder."""
    rank: int = 0
    size: int = 1
    group: Any = None
    """The torch.distributed group; None: all processes."""

    def __post_init__(self) -> None:
        """Refuse a process without a row.

        Raises:
            ConfigError: more processes than latents.
        """
        if self.n_latents < self.size:
            raise ConfigError(
                f"sae.n_latents = {self.n_latents} cannot be divided among {self.size} devices",
                hint="Give the worker fewer devices per job: --devices 0,1 trains one job on each.",
            )

    def __deepcopy__(self, _memo: dict[int, Any]) -> "Shard":
        """Return itself: a copy of a model has the same partners."""
        return self

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Return (first, end) of every process's rows."""
        return [*pairwise(rank * self.n_latents // self.size for rank in range(self.size + 1))]

    @property
    def rows(self) -> slice:
        """Return this process's rows."""
        return slice(*self.bounds[self.rank])

    @property
    def sizes(self) -> list[int]:
        """Return the number of rows of every process."""
        return [end - first for first, end in self.bounds]

    def total(self, part: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the sum over the processes, the same bits on each.

        Its gradient is handed to every part as it is: what comes after the sum is computed by every process alike.
        """
        found: Tensor = part if self.size == 1 else _Total.apply(part, self)  # type: ignore[no-untyped-call]
        return found

    def replicated(self, value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return a value that all processes hold alike, for use by this one's rows: gradients are added up."""
        found: Tensor = value if self.size == 1 else _Replicated.apply(value, self)  # type: ignore[no-untyped-call]
        return found

    def gather(self, value: Tensor) -> Tensor:
        """Return the processes' values, all of one shape, along a new first dimension."""
        if self.size == 1:
            return value.unsqueeze(0)
        found = [torch.empty_like(value) for _ in range(self.size)]
        with peer_errors():
            dist.all_gather(found, value.contiguous(), group=self.group)
        return torch.stack(found)

    def send(self, value: Tensor, to: int) -> None:
        """Send a tensor to one process of the group, through main memory."""
        with peer_errors():
            dist.send(value.detach().cpu().contiguous(), group=self.group, group_dst=to)

    def receive(self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype, *, source: int) -> Tensor:
        """Receive a tensor, in main memory."""
        found = torch.empty(shape, dtype=dtype)
        with peer_errors():
            dist.recv(found, group=self.group, group_src=source)
        return found


def broadcast_json(value: Any, *, group: Any = None) -> Any:
    """Return on every process of a group what the first one says, which JSON can hold: never a pickle.

    Raises:
        TrainingError: another process is gone.
    """
    text = torch.tensor([*json.dumps(value).encode()], dtype=torch.uint8)
    size = torch.tensor([len(text)])
    with peer_errors():
        dist.broadcast(size, group=group, group_src=0)
        found = text if dist.get_rank(group) == 0 else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(found, group=group, group_src=0)
    return json.loads(bytes(found.tolist()))


@contextmanager
def peer_errors() -> Iterator[None]:
    """Say in our own words that another process is gone.

    Raises:
        TrainingError: what is done inside found nobody.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise TrainingError(
            f"a process of this training on another device is gone ({str(error).splitlines()[0][:200]})",
            hint="What it said is in the trainer's log, before this.",
        ) from error


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, shard: Shard) -> Tensor:
        found = part.clone(memory_format=torch.contiguous_format)
        with peer_errors():
            dist.all_reduce(found, group=shard.group)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Replicated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        found = gradients[0].clone(memory_format=torch.contiguous_format)
        with peer_errors():
            dist.all_reduce(found, group=ctx.shard.group)
        return found, None
