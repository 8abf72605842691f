"""A training whose latents are divided among processes: dealt out from a whole state, gathered to be saved."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from orchestrator.config.job import JobConfig
from worker.sae.dead_latents import count_by_layer, silent_tokens
from worker.sae.optimizer import Optimizer
from worker.sae.sharded.loss import Code, DeadLatents, sharded_losses
from worker.sae.sharded.model import ROWS, ShardedAutoencoder
from worker.sae.sharded.shard import Shard, broadcast_json
from worker.sae.train_state import TrainState, variances_of

_DIVIDED = (*ROWS, "tokens_since_fired")
"""Last part of the names of the tensors that have one row per latent; Adam's step counts have none."""


class ShardedOptimizer(Optimizer):
    """Adam on this process's rows: all of a step is local but for the gradient's norm."""

    model: ShardedAutoencoder

    def _norm(self, names: list[str], norms: Float[Tensor, " n_parts"]) -> Float[Tensor, ""]:
        """Return the norm of the whole gradient: every process's rows, and b_pre, which all hold alike, once."""
        is_divided = torch.tensor([name in ROWS for name in names], device=norms.device)
        rows = self.model.shard.gather(torch.linalg.vector_norm(norms.where(is_divided, 0.0)))
        found: Tensor = torch.linalg.vector_norm(torch.cat([rows, norms.where(~is_divided, 0.0)]))
        return found


class ShardedTrainState(TrainState):
    """One process's part of a state. The first process saves and decides; the others do as it does."""

    model: ShardedAutoencoder
    _optimizer = ShardedOptimizer

    def __init__(
        self, config: JobConfig, d_model: int, *, shard: Shard, n_layers: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        """Allocate; `scatter` fills it."""
        self.config, self.shard = config, shard
        self.before_gathering: Callable[[], None] = lambda: None
        """Called by the first process before the others must send it their parts."""
        self.before_step: Callable[[Tensor], None] = lambda _: None
        """Called by the first process with the batch that the others must take a step on, too."""
        super().__init__(config, d_model, n_layers=n_layers, device=device)
        self.tokens_since_fired = self.tokens_since_fired[shard.rows].clone()

    @classmethod
    def scatter(
        cls, whole: TrainState | None, config: JobConfig, *, shard: Shard, device: torch.device | str
    ) -> "ShardedTrainState":
        """Take this process's part of the state that the first process has; the others give None."""
        about: Any = None
        tensors: dict[str, Tensor] = {}
        if whole is not None:
            tensors = whole.tensors()
            described = [(name, [*value.shape], str(value.dtype)) for name, value in tensors.items()]
            about = whole.values(), described
        values, described = broadcast_json(about, group=shard.group) if shard.size > 1 else about
        parts = {
            name: _scattered(
                name, tensors.get(name), tuple(shape), getattr(torch, dtype.removeprefix("torch.")), shard=shard
            )
            for name, shape, dtype in described
        }
        n_layers = len(variances_of(values))
        return cls(config, len(parts["mu"]), shard=shard, n_layers=n_layers, device=device)._filled(parts, values)

    def differentiate(
        self, batch: Float[Tensor, "n_vectors d_model"], config: JobConfig
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " 2"], bool]:
        """Leave this process's part of the gradient; return the loss, AuxK's, and whether AuxK was active."""
        self.before_step(batch)
        code, dead_after = Code.of(self.model, batch), self.dead_after_tokens
        self.tokens_since_fired = count_by_layer(*code.narrow, self.tokens_since_fired)
        dead = None
        # Before that many tokens no latent can be dead, and nobody need be asked.
        if self.tokens_seen + self.n_tokens(batch) > dead_after:
            dead = DeadLatents.among(silent_tokens(self.tokens_since_fired) > dead_after, self.shard)
        found = sharded_losses(self.model, batch, code, config=config.sae, variances=self.variances, dead=dead)
        found.total.backward()  # type: ignore[no-untyped-call]
        return found.total.detach(), found.aux.detach(), dead is not None

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state, whole, in main memory; on the other processes their own parts."""
        self.before_gathering()
        return {name: self._gathered(name, value) for name, value in super().tensors().items()}

    def whole(self) -> TrainState:
        """Return the state with every latent in one place, in main memory; for the first process alone."""
        return TrainState.restored(self.config, self.tensors(), self.values(), device="cpu")

    def _model(self, config: JobConfig, d_model: int) -> ShardedAutoencoder:
        return ShardedAutoencoder(config.sae, d_model, shard=self.shard, dtype=config.training.encode_dtype)

    def _gathered(self, name: str, value: Tensor) -> Tensor:
        if not _is_divided(name, value.shape):
            return value
        if self.shard.rank:
            self.shard.send(value, 0)
            return value
        whole = torch.empty((self.shard.n_latents, *value.shape[1:]), dtype=value.dtype)
        whole[self.shard.rows] = value.detach().cpu()
        for rank, (first, end) in list(enumerate(self.shard.bounds))[1:]:
            whole[first:end] = self.shard.receive((end - first, *value.shape[1:]), value.dtype, source=rank)
        return whole


def _scattered(name: str, whole: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, *, shard: Shard) -> Tensor:
    is_divided = _is_divided(name, shape)
    if whole is None:
        own = (shard.sizes[shard.rank], *shape[1:]) if is_divided else shape
        return shard.receive(own, dtype, source=0)
    for rank, (first, end) in list(enumerate(shard.bounds))[1:]:
        shard.send(whole[first:end] if is_divided else whole, rank)
    return whole[shard.rows] if is_divided else whole


def _is_divided(name: str, shape: tuple[int, ...]) -> bool:
    return bool(shape) and name.rpartition(".")[2] in _DIVIDED
