"""One sparse autoencoder whose latents are divided among processes: exact selection, decode and loss over all of them.

Per step: all-gather of each process's largest values (n_tokens · k · size numbers), all-reduce of the partial
reconstructions (n_tokens · d_model) and of ∂b_pre. Indices are never sent: a list is sorted, the processes hold
consecutive rows, so a place in the gathered lists names the latent, and ties fall as in one list.
Source: Gao et al. 2024, appendix D, with the exact local list in place of a capacity factor.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config.activation_functions import ACTIVATIONS
from orchestrator.config.job import EncodeDtype, SaeConfig
from orchestrator.errors import ConfigError
from worker.sae.model import Encoded, SparseAutoencoder
from worker.sae.sharded.shard import Shard
from worker.sae.sparse import selected_pre_acts, sparse_decode

_DIVISIBLE = " or ".join(name for name, facts in ACTIVATIONS.items() if facts.selects_per_token)
ROWS = ("W_enc", "b_enc", "W_dec")
"""The parameters that are divided by latents."""


class GlobalSelection(NamedTuple):
    """What a selection among the latents of all processes chose."""

    values: Float[Tensor, "n_tokens k"]
    """Signed values, largest first, of all processes; the same bits on each."""
    places: Int[Tensor, "n_tokens k"]
    """owner · width + place in the owner's own list, sorted like `values`."""
    listed: Int[Tensor, "n_tokens own"]
    """This process's own list, best first: the chosen ones of a token come first in it."""
    listed_values: Float[Tensor, "n_tokens own"]
    width: int
    """Length that every process's list is filled up to."""

    def mine(self, rank: int, k: int) -> "OwnSelection":
        """Return what of the k best of all processes is this one's."""
        counts = (self.places[:, :k] // self.width == rank).sum(1, keepdim=True)
        # As wide as the token with the most; one at least, for the kernels. NaN breaks the order, never the bounds.
        width = max(1, min(int(counts.max()), self.listed.shape[1]))
        columns = torch.arange(width, device=counts.device)
        return OwnSelection(self.listed[:, :width], self.listed_values[:, :width], columns < counts)


class OwnSelection(NamedTuple):
    """The chosen latents of one process, as its own rows; a token with fewer than the widest has unused places."""

    indices: Int[Tensor, "n_tokens own"]
    values: Float[Tensor, "n_tokens own"]
    used: Bool[Tensor, "n_tokens own"]


@torch.no_grad()
def select(
    values: Float[Tensor, "n_tokens own"], listed: Int[Tensor, "n_tokens own"], *, k: int, width: int, shard: Shard
) -> GlobalSelection:
    """Choose each token's k largest among all processes' lists, of equal ones the lower latent.

    `values` and `listed` (rows of this process) are sorted as `top_k` does; every list is filled up to `width` with −∞.
    """
    filled = functional.pad(values, (0, width - values.shape[1]), value=-torch.inf)
    table = shard.gather(filled).transpose(0, 1).flatten(1)
    # Short rows, and every process must come to the same order on any device: a stable sort, not `top_k`.
    places = table.sort(dim=1, descending=True, stable=True).indices[:, :k]
    if not listed.shape[1]:  # no candidate here: one unused place, for the kernels
        listed = listed.new_zeros(len(listed), 1)
        values = values.new_zeros(len(values), 1)
    return GlobalSelection(table.gather(1, places), places, listed, values, width)


def check_divisible(config: SaeConfig) -> None:
    """Refuse what cannot be divided among devices.

    Raises:
        ConfigError: an activation that needs every latent at once.
    """
    if not ACTIVATIONS[config.activation].selects_per_token:
        raise ConfigError(
            f"sae.activation = {config.activation} cannot be divided among devices",
            hint=f"Train it on one device (--devices 0,1 instead of 0+1), or choose {_DIVISIBLE}.",
        )


class ShardedAutoencoder(SparseAutoencoder):
    """A process's rows of a `SparseAutoencoder`; `encode` and `decode` answer for the whole, alike on every process."""

    def __init__(self, config: SaeConfig, d_model: int, *, shard: Shard, dtype: EncodeDtype = "float32") -> None:
        """Allocate this process's rows.

        Raises:
            ConfigError: an activation that needs every latent at once.
        """
        check_divisible(config)
        with torch.device("meta"):
            super().__init__(config, d_model, dtype=dtype)
        self.shard = shard
        n_rows = shard.sizes[shard.rank]
        self.W_enc = nn.Parameter(torch.zeros(n_rows, d_model))
        self.b_enc = nn.Parameter(torch.zeros(n_rows))
        self.W_dec = nn.Parameter(torch.zeros(n_rows, d_model))
        self.b_pre = nn.Parameter(torch.zeros(d_model))

    @property
    def n_latents(self) -> int:
        """Number of latents of the whole."""
        return self.shard.n_latents

    def share(self, marked: Bool[Tensor, " n_rows"]) -> float:
        """Return the share of the latents of all processes that are marked."""
        return int(self.shard.gather(marked.sum()).sum()) / self.n_latents

    @torch.no_grad()
    def choose(self, x: Float[Tensor, "n_tokens d_model"], k: int) -> tuple[Tensor, GlobalSelection]:
        """Return this process's pre-activations, and the k best latents of all processes."""
        pre_acts = self._pre_acts(x)
        values, listed = self._select(x, pre_acts, min(k, len(self.W_enc)))
        width = min(k, max(self.shard.sizes))
        return pre_acts, select(values, listed, k=k, width=width, shard=self.shard)

    def acts(self, x: Float[Tensor, "n_tokens d_model"], mine: OwnSelection) -> Float[Tensor, "n_tokens own"]:
        """Return the values of this process's chosen latents after ReLU, differentiable; 0 in unused places."""
        b_pre = self.shard.replicated(self.b_pre)
        selected = selected_pre_acts(x, b_pre, self.W_enc, self.b_enc, (mine.values, mine.indices))
        return selected.relu().where(mine.used, 0.0)

    def reconstruct(
        self, acts: Float[Tensor, "n_tokens own"], indices: Int[Tensor, "n_tokens own"]
    ) -> Float[Tensor, "n_tokens d_model"]:
        """Return x̂ of the whole from this process's share of the latents."""
        return self.shard.total(sparse_decode(acts, indices, self.W_dec)) + self.b_pre

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "n_tokens d_model"], *, k: int | None = None) -> Encoded:
        """Find each token's latents among those of all processes; pre_acts are this process's. Without gradients."""
        pre_acts, chosen = self.choose(x, k or self.k)
        listed = chosen.listed + self.shard.rows.start
        filled = functional.pad(listed, (0, chosen.width - listed.shape[1]))
        table = self.shard.gather(filled).transpose(0, 1).flatten(1)
        return Encoded(pre_acts, chosen.values.relu(), table.gather(1, chosen.places))

    @torch.no_grad()
    def decode(
        self, top_acts: Float[Tensor, "n_tokens k"], top_indices: Int[Tensor, "n_tokens k"] | None
    ) -> Float[Tensor, "n_tokens d_model"]:
        """Return x̂ = z · W_dec + b_pre from latents of all processes. Without gradients."""
        assert top_indices is not None
        rows = self.shard.rows
        mine = (top_indices >= rows.start) & (top_indices < rows.stop)
        return self.reconstruct(top_acts.where(mine, 0.0), (top_indices - rows.start).where(mine, 0))
