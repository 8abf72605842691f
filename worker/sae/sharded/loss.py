"""The losses of a batch and all gradients, when the latents are divided among processes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from orchestrator.config.job import SaeConfig
from worker.sae.loss import Losses, aux_share, reconstruction_loss
from worker.sae.sharded.model import GlobalSelection, OwnSelection, ShardedAutoencoder, select
from worker.sae.sharded.shard import Shard
from worker.sae.sparse import selected_pre_acts, sparse_decode
from worker.sae.topk import top_k


class DeadLatents(NamedTuple):
    """The dead latents."""

    mine: Int[Tensor, " n_dead"]
    """This process's, as its own rows."""
    counts: list[int]
    """How many each process has."""

    @classmethod
    def among(cls, dead: Bool[Tensor, " n_latents"], shard: Shard) -> "DeadLatents | None":
        """Ask every process for its dead latents; None if no process has any."""
        mine = dead.nonzero().squeeze(1)
        counts = shard.gather(torch.tensor(len(mine), device=dead.device)).tolist()
        return cls(mine, counts) if any(counts) else None


class NarrowCode(NamedTuple):
    """The k best latents of each token, as far as they are this process's."""

    acts: Float[Tensor, "n_tokens own"]
    indices: Int[Tensor, "n_tokens own"]


def sharded_losses(
    model: ShardedAutoencoder,
    x: Float[Tensor, "n_tokens d_model"],
    code: "Code",
    *,
    config: SaeConfig,
    variances: Sequence[float],
    dead: DeadLatents | None,
) -> Losses:
    """Return what `losses` returns, the same bits on every process; `backward` then leaves complete gradients."""
    reconstruction = model.reconstruct(*code.narrow)
    total = reconstruction_loss(x, reconstruction, variances=variances)
    for _, weight in model.reconstructions[1:]:  # a code holds the widest selection beside the first
        wide = model.reconstruct(code.acts, code.mine.indices)
        total = total + weight * reconstruction_loss(x, wide, variances=variances)
    if dead is None or config.aux_coef == 0:
        return Losses(total, total.new_zeros(2))
    aux = _aux_loss(model, x, code.pre_acts, error=(x - reconstruction).detach(), dead=dead)
    return Losses(total + config.aux_coef * aux[0], aux)


class Code(NamedTuple):
    """A batch, encoded for training: this process's share of the widest code, with gradients."""

    pre_acts: Float[Tensor, "n_tokens own_rows"]
    chosen: GlobalSelection
    mine: OwnSelection
    acts: Float[Tensor, "n_tokens own"]
    """Values of `mine` after ReLU."""
    narrow: NarrowCode

    @classmethod
    def of(cls, model: ShardedAutoencoder, x: Float[Tensor, "n_tokens d_model"]) -> "Code":
        """Encode a batch."""
        pre_acts, chosen = model.choose(x, model.k_widest)
        rank = model.shard.rank
        mine = chosen.mine(rank, model.k_widest)
        acts = model.acts(x, mine)
        if model.k == model.k_widest:
            return cls(pre_acts, chosen, mine, acts, NarrowCode(acts, mine.indices))
        indices, _, used = chosen.mine(rank, model.k)
        narrow = acts[:, : indices.shape[1]].where(used, 0.0)
        return cls(pre_acts, chosen, mine, acts, NarrowCode(narrow, indices))


def _aux_loss(
    model: ShardedAutoencoder,
    x: Float[Tensor, "n_tokens d_model"],
    pre_acts: Float[Tensor, "n_tokens own_rows"],
    *,
    error: Float[Tensor, "n_tokens d_model"],
    dead: DeadLatents,
) -> Float[Tensor, " 2"]:
    """Return AuxK as `loss.aux_loss` does, over the dead latents of all processes."""
    shard, b_pre = model.shard, model.b_pre.detach()
    k = min(model.k_aux, sum(dead.counts))
    mine = _top_dead(model, x, pre_acts[:, dead.mine], k=k, dead=dead).mine(shard.rank, k)
    selected = selected_pre_acts(x, b_pre, model.W_enc, model.b_enc, (mine.values, mine.indices))
    found = shard.total(sparse_decode(selected.relu().where(mine.used, 0.0), mine.indices, model.W_dec))
    return aux_share(error, found)


@torch.no_grad()
def _top_dead(model: ShardedAutoencoder, x: Tensor, pre_acts: Tensor, *, k: int, dead: DeadLatents) -> GlobalSelection:
    if model.product_dtype is not None:  # rounded: good for candidates only
        pre_acts = functional.linear(x - model.b_pre, model.W_enc[dead.mine], model.b_enc[dead.mine])
    own = min(k, len(dead.mine))
    best = top_k(pre_acts, own) if own else dead.mine.new_zeros(len(x), 0)
    width = min(k, max(dead.counts))
    return select(pre_acts.gather(1, best), dead.mine[best], k=k, width=width, shard=model.shard)
