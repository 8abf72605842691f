"""The sparse autoencoder."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config.activation_functions import ACTIVATIONS, reconstruction_sizes
from orchestrator.config.job import EncodeDtype, SaeConfig
from worker.sae.activation_functions import activation_function
from worker.sae.scaled_product import FLOAT8, ScaledRows
from worker.sae.sparse import selected_pre_acts, sparse_decode
from worker.sae.topk import rescored_top_k, top_values


class Encoded(NamedTuple):
    """What the encoder found."""

    pre_acts: Float[Tensor, "n_tokens n_latents"]
    """Signed pre-activations; they carry no gradient where top_indices is given."""
    top_acts: Float[Tensor, "n_tokens k"]
    """Values of the kept latents, ≥ 0; a latent fired where its value is > 0."""
    top_indices: Int[Tensor, "n_tokens k"] | None
    """Which latents; None: all of them, in order (relu, jumprelu, batchtopk)."""


class SparseAutoencoder(nn.Module):
    """A sparse autoencoder: z = f((x − b_pre) · W_encᵀ + b_enc), x̂ = z · W_dec + b_pre.

    f keeps the k largest SIGNED pre-activations, then applies ReLU (topk, multi_topk); or is another one of
    `activation_functions`. Row i of W_enc and of W_dec belongs to latent i; the rows of W_dec have unit norm.
    Source: Gao et al. 2024, Scaling and evaluating sparse autoencoders, section 2.3.
    """

    def __init__(self, config: SaeConfig, d_model: int, *, dtype: EncodeDtype = "float32") -> None:
        """Allocate zeros (`init.initialise` fills them); parameters are float32, `dtype` is of the dense product."""
        super().__init__()
        n_latents = config.latents(d_model)
        self.activation = config.activation
        self.k = config.k
        self.k_aux = min(config.aux_latents(d_model), n_latents)
        self.product_dtype = None if dtype == "float32" else FLOAT8 if dtype == "float8_e4m3" else getattr(torch, dtype)
        self.W_enc = nn.Parameter(torch.zeros(n_latents, d_model))
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.W_dec = nn.Parameter(torch.zeros(n_latents, d_model))
        self.b_pre = nn.Parameter(torch.zeros(d_model))
        self.function = activation_function(config)
        self._own = [*self.function.new_tensors(0)]
        for name, value in self.function.new_tensors(n_latents).items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            else:
                self.register_buffer(name, value)

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the activations."""
        return self.W_enc.shape[1]

    @property
    def selects_per_token(self) -> bool:
        """Whether each token keeps its own k latents, listed by index."""
        return ACTIVATIONS[self.activation].selects_per_token

    @property
    def reconstructions(self) -> tuple[tuple[int, float], ...]:
        """(latents decoded per token, weight in the loss) of each reconstruction that training computes; rising."""
        return reconstruction_sizes(self.activation, k=self.k, n_latents=self.n_latents)

    @property
    def k_widest(self) -> int:
        """The largest number of latents per token that training decodes: 4k for multi_topk, else k."""
        return self.reconstructions[-1][0]

    @property
    def own(self) -> dict[str, Tensor]:
        """The tensors of the activation function, by name."""
        return {name: getattr(self, name) for name in self._own}

    def encode(self, x: Float[Tensor, "n_tokens d_model"], *, k: int | None = None) -> Encoded:
        """Find each token's latents; `k` overrides the model's own where latents are selected per token."""
        if self.selects_per_token:
            with torch.no_grad():
                pre_acts = self._pre_acts(x)
                values, top_indices = self._select(x, pre_acts, k or self.k)
            selected = selected_pre_acts(x, self.b_pre, self.W_enc, self.b_enc, (values, top_indices))
            return Encoded(pre_acts, selected.relu(), top_indices)
        pre_acts = self._pre_acts(x)
        acts = self.function.activate(pre_acts, self.own, k=self.k, training=self.training)
        return Encoded(pre_acts, acts, None)

    def decode(
        self, top_acts: Float[Tensor, "n_tokens k"], top_indices: Int[Tensor, "n_tokens k"] | None
    ) -> Float[Tensor, "n_tokens d_model"]:
        """Return x̂ = z · W_dec + b_pre."""
        if top_indices is not None:
            return sparse_decode(top_acts, top_indices, self.W_dec) + self.b_pre
        return self._product(top_acts, self.W_dec.T) + self.b_pre

    def forward(self, x: Float[Tensor, "n_tokens d_model"]) -> Float[Tensor, "n_tokens d_model"]:
        """Return the reconstruction x̂."""
        _, top_acts, top_indices = self.encode(x)
        return self.decode(top_acts, top_indices)

    def share(self, marked: Bool[Tensor, " n_latents"]) -> float:
        """Return the share of the latents that are marked."""
        return float(marked.double().mean())

    def _pre_acts(self, x: Float[Tensor, "n_tokens d_model"]) -> Float[Tensor, "n_tokens n_latents"]:
        centred = x - self.b_pre
        if self.product_dtype is None:
            return functional.linear(centred, self.W_enc, self.b_enc)
        return self._product(centred, self.W_enc) + self.b_enc

    def _select(self, x: Tensor, pre_acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if self.product_dtype is not None:
            return rescored_top_k(pre_acts, x - self.b_pre, (self.W_enc, self.b_enc), k)
        return top_values(pre_acts, k)

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        if self.product_dtype is None:
            return functional.linear(left, right)
        if self.product_dtype is FLOAT8:
            return ScaledRows.of(left).times(ScaledRows.of(right)).float()
        return functional.linear(left.to(self.product_dtype), right.to(self.product_dtype)).float()
