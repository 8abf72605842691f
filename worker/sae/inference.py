"""The one form in which every SAE is used, whatever trained it and whatever it was stored as."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.config.hook_names import transformer_lens_name
from orchestrator.config.job import Normalize
from orchestrator.config.sae_facts import SaeFacts
from orchestrator.errors import ConfigError
from worker.sae import normalize
from worker.sae.model import SparseAutoencoder
from worker.sae.sparse import sparse_decode
from worker.sae.topk import top_k, top_values

_SMALLEST_NORM = 1e-8


@dataclass
class InferenceCfg:
    """The fields of SAEBench's config of a custom SAE, by its names; it writes to some of them."""

    d_in: int
    d_sae: int
    model_name: str
    hook_name: str
    """In TransformerLens's words where the place is one of ours, else as the files name it."""
    hook_layer: int
    """-1: not known, or several."""
    architecture: str
    dtype: str
    device: str = "cpu"
    apply_b_dec_to_input: bool | None = None
    context_size: int | None = None
    prepend_bos: bool = True
    normalize_activations: str = "none"
    """Always none: the SAE takes raw activations, and normalises them itself."""
    hook_head_index: int | None = None
    activation_fn_str: str = ""
    activation_fn_kwargs: Any = None
    finetuning_scaling_factor: bool | None = None
    model_from_pretrained_kwargs: Any = None
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -1
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    @classmethod
    def of(cls, facts: SaeFacts) -> "InferenceCfg":
        """Return the config of an SAE by what is known of it."""
        return cls(
            d_in=facts.d_model,
            d_sae=facts.n_latents,
            model_name=facts.subject or "",
            hook_name=transformer_lens_name(facts) or facts.hook_point or "",
            hook_layer=facts.layers[0] if len(facts.layers) == 1 else -1,
            architecture=facts.selection,
            dtype=facts.dtype,
            apply_b_dec_to_input=facts.subtracts_bias,
            context_size=facts.context_length,
            prepend_bos=True if facts.prepend_bos is None else facts.prepend_bos,
        )


class Scales(NamedTuple):
    """Numbers that the encoder's and the decoder's side are multiplied by."""

    input: float = 1.0
    """Of a raw activation, with `normalize: fixed`."""
    output: float = 1.0
    """Of a reconstruction, with `normalize: fixed`: 1 / input, or of a transcoder another."""
    undoes_eps: bool = True
    """With `layer_norm`: whether a reconstruction is multiplied by std + 1e-5, as ours is, or by std alone."""
    threshold: float = 1.0
    """What the stored threshold was multiplied by as it was read, already in the threshold: for `formats.variants`."""


class SparseActs(NamedTuple):
    """The active latents of each vector, largest first; where there are fewer, values of 0 fill the rest."""

    values: Float[Tensor, "*batch k"]
    indices: Int[Tensor, "*batch k"]


@dataclass(frozen=True)
class _Statistics:
    """What normalisation took out of each vector: raw = vector · scale + mean."""

    mean: Float[Tensor, "n_tokens 1"]
    scale: Float[Tensor, "n_tokens 1"]


class InferenceSae(nn.Module):
    """An SAE that takes raw activations: z = select((normalise(x) − b_dec) · W_enc + b_enc), x̂ = z · W_dec + b_dec.

    The statistics that the normalisation of each vector took out are put back into x̂. A transcoder is the same with
    another target, and W_skip adds x · W_skipᵀ to what `forward` returns. b_dec is subtracted from the input where
    `facts.subtracts_bias` says so. The selections: topk keeps the k largest signed pre-activations and applies ReLU;
    batchtopk and jumprelu keep those above `threshold`, which is () or (n_latents); relu keeps what is positive;
    gated keeps ReLU(exp(r_mag) · a + b_mag) where a + b_enc > 0, a without bias.

    Names and shapes are those that SAEBench asks of an SAE: W_enc (d_model, n_latents), b_enc (n_latents), W_dec
    (n_latents, d_out), b_dec (d_out), `cfg`, `dtype`, `device`, `to(device, dtype)`, and encode, decode and forward of
    (..., d_model). Its rows of W_dec must have norm 1: `with_unit_rows`.

    With a normalisation per vector, `decode(z)` needs the statistics of the vectors that z is of: those of the last
    `encode` are kept, and used as often as `decode` is called with as many vectors; another number of them is an error.
    `forward` needs nothing kept.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    threshold: nn.Parameter | None
    b_mag: nn.Parameter | None
    r_mag: nn.Parameter | None
    W_skip: nn.Parameter | None
    rank: nn.Parameter | None

    def __init__(self, facts: SaeFacts, tensors: Mapping[str, Tensor], *, scales: Scales | None = None) -> None:
        """Take tensors by the names above, without a copy. W_skip: (d_out, d_model). Nothing requires a gradient.

        Raises:
            ConfigError: a tensor is missing, has another shape, is not of floats or has values that are not finite.
        """
        super().__init__()
        _check(facts, tensors)
        self.facts = facts
        self.scales = scales or Scales()
        for name in (*_REQUIRED, *_OPTIONAL):
            value = tensors.get(name)
            self.register_parameter(name, None if value is None else nn.Parameter(value.detach(), requires_grad=False))
        self.cfg = InferenceCfg.of(facts)
        self._last: _Statistics | None = None

    @classmethod
    def from_trained(cls, model: SparseAutoencoder, facts: SaeFacts) -> "InferenceSae":
        """Make it of an SAE that was trained here, sharing its weights; `facts.normalize` is how it was trained."""
        tensors = {"W_enc": model.W_enc.T, "b_enc": model.b_enc, "W_dec": model.W_dec, "b_dec": model.b_pre}
        if model.activation == "jumprelu":
            tensors["threshold"] = model.own["log_threshold"].exp()
        elif model.activation == "batchtopk":  # there it keeps what is ≥ its threshold, here what is above
            tensors["threshold"] = torch.nextafter(model.own["threshold"], torch.tensor(-torch.inf))
        return cls(facts, tensors)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, in which everything is computed."""
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_dec.device

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, those it has."""
        return {name: value.detach() for name, value in self.named_parameters()}

    def changed(
        self, tensors: Mapping[str, Tensor], *, facts: SaeFacts | None = None, scales: Scales | None = None
    ) -> "InferenceSae":
        """Return one that differs in what is given and shares all other tensors."""
        return InferenceSae(facts or self.facts, self.tensors() | dict(tensors), scales=scales or self.scales)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch n_latents"]:
        """Return the latents of raw activations."""
        vectors, self._last = self._normalized(x)
        return self._select(vectors).view(*x.shape[:-1], -1)

    def pre_acts(
        self, x: Float[Tensor, "*batch d"], latents: slice | Tensor = slice(None)
    ) -> Float[Tensor, "*batch n"]:
        """Return the signed values that the selection compares, of all latents or some: an active one has its own.
        Of gated the magnitude exp(r_mag) · a + b_mag. What `decode` keeps of the last `encode` stays.
        """
        vectors, _ = self._normalized(x)
        if self.b_mag is None or self.r_mag is None:
            found = self._pre_acts(vectors, self.b_enc, latents)
        else:
            found = self._pre_acts(vectors, None, latents) * self.r_mag[latents].exp() + self.b_mag[latents]
        return found.view(*x.shape[:-1], -1)

    def encode_sparse(self, x: Float[Tensor, "*batch d_model"]) -> SparseActs:
        """Return the active latents: k of each vector with topk, else as many as the vector with most has, if any."""
        vectors, self._last = self._normalized(x)
        if self.facts.selection == "topk":
            values, indices = self._top(vectors)
        else:
            acts = self._select(vectors)
            widest = max(1, int((acts > 0).sum(1).max())) if len(acts) else 1
            values, indices = acts.topk(widest, dim=1)
        return SparseActs(values.view(*x.shape[:-1], -1), indices.view(*x.shape[:-1], -1))

    def decode(self, z: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_out"]:
        """Return x̂ of latents, in raw space, without what W_skip adds.

        Raises:
            ConfigError: each vector is normalised, and the last `encode` was of another number of vectors.
        """
        rows = z.reshape(-1, z.shape[-1]).to(self.dtype)
        if self._last is not None and len(self._last.mean) != len(rows):
            raise ConfigError(
                f"these are the latents of {len(rows)} vectors, and the last encode was of {len(self._last.mean)}",
                hint=f"With normalize: {self.facts.normalize}, decode what was encoded last, or call the SAE itself.",
            )
        if self._last is None and self.facts.normalize not in {"none", "fixed"}:
            raise ConfigError(f"with normalize: {self.facts.normalize}, encode comes before decode")
        return self._raw(self._combined(rows) + self.b_dec, self._last).view(*z.shape[:-1], -1)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_out"]:
        """Return the reconstruction of raw activations, or a transcoder's prediction, in raw space."""
        vectors, statistics = self._normalized(x)
        if self.facts.selection == "topk" and self.W_dec.is_contiguous():
            reconstructed = sparse_decode(*self._top(vectors), self.W_dec) + self.b_dec
        else:
            reconstructed = self._select(vectors) @ self.W_dec + self.b_dec
        raw = self._raw(reconstructed, statistics)
        if self.W_skip is not None:
            raw = raw + functional.linear(x.reshape(-1, x.shape[-1]).to(self.dtype), self.W_skip)
        return raw.view(*x.shape[:-1], -1)

    def with_unit_rows(self) -> "InferenceSae":
        """Return the same SAE with rows of W_dec of norm 1: its latents are multiplied by the norms, x̂ is the same.

        Of topk the order in which it selects stays that of the latents as they were.
        """
        return _unit_rows(self)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> "InferenceSae":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.cfg.dtype, self.cfg.device = str(self.dtype).removeprefix("torch."), str(self.device)
        self._last = None
        return self

    def _normalized(self, x: Tensor) -> tuple[Tensor, _Statistics | None]:
        rows = x.reshape(-1, x.shape[-1]).to(self.dtype)
        kind = self.facts.normalize
        if kind in {"none", "fixed"}:
            return (rows if self.scales.input == 1.0 else rows * self.scales.input), None
        if kind == "constant_norm":
            scale = rows.norm(dim=1, keepdim=True).clamp_min(_SMALLEST_NORM) / rows.shape[1] ** 0.5
            return rows / scale, _Statistics(torch.zeros_like(scale), scale)
        vectors, mean, scale = normalize.normalize(rows, cast(Normalize, kind))
        return vectors, _Statistics(mean, scale if self.scales.undoes_eps else scale - normalize.STD_EPS)

    def _raw(self, rows: Tensor, statistics: _Statistics | None) -> Tensor:
        if statistics is not None:
            return normalize.denormalize(rows, statistics.mean, statistics.scale)
        return rows if self.scales.output == 1.0 else rows * self.scales.output

    def _combined(self, acts: Tensor) -> Tensor:
        """Return z · W_dec; of k latents a vector as `forward` does, in the same order of sums."""
        if self.facts.selection == "topk" and self.W_dec.is_contiguous():
            values, indices = acts.topk(self.facts.k or 1, dim=1)
            if values.count_nonzero() == acts.count_nonzero():  # else somebody has set further ones
                return sparse_decode(values, indices, self.W_dec)
        return acts @ self.W_dec

    def _pre_acts(self, vectors: Tensor, bias: Tensor | None, latents: slice | Tensor = slice(None)) -> Tensor:
        centred = vectors - self.b_dec if self.facts.subtracts_bias else vectors
        return functional.linear(centred, self.W_enc[:, latents].T, None if bias is None else bias[latents])

    def _top(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        pre_acts = self._pre_acts(vectors, self.b_enc)
        is_differentiated = torch.is_grad_enabled() and pre_acts.requires_grad
        if self.rank is None and not is_differentiated:
            values, indices = top_values(pre_acts, self.facts.k or 1)
        else:
            indices = top_k(pre_acts if self.rank is None else pre_acts * self.rank, self.facts.k or 1)
            values = pre_acts.gather(1, indices)
        return values.relu(), indices

    def _select(self, vectors: Tensor) -> Tensor:
        if self.facts.selection == "topk":
            values, indices = self._top(vectors)
            return values.new_zeros(len(values), self.facts.n_latents).scatter(1, indices, values)
        if self.b_mag is not None and self.r_mag is not None:
            pre_acts = self._pre_acts(vectors, None)
            return (self.r_mag.exp() * pre_acts + self.b_mag).relu() * (pre_acts + self.b_enc > 0)
        pre_acts = self._pre_acts(vectors, self.b_enc)
        return pre_acts.relu() if self.threshold is None else pre_acts.relu() * (pre_acts > self.threshold)


def decode_sparse(sae: InferenceSae, acts: SparseActs) -> Float[Tensor, "*batch d_out"]:
    """Return x̂ of what `encode_sparse` of this SAE returned last, in raw space, without what W_skip adds."""
    *batch, k = acts.values.shape
    rows = sparse_decode(acts.values.reshape(-1, k), acts.indices.reshape(-1, k), sae.W_dec) + sae.b_dec
    return sae._raw(rows, sae._last).view(*batch, -1)


def normalized(sae: InferenceSae, x: Float[Tensor, "*batch d_model"]) -> normalize.Normalized:
    """Return the vectors that an SAE encodes; of `fixed`, too, x = vectors · scale + mean."""
    rows, statistics = sae._normalized(x)
    if statistics is None:
        statistics = _Statistics(rows.new_zeros(len(rows), 1), rows.new_full((len(rows), 1), 1 / sae.scales.input))
    mean, scale = (part.view(*x.shape[:-1], 1) for part in (statistics.mean, statistics.scale))
    return normalize.Normalized(rows.view(x.shape), mean, scale)


def _unit_rows(sae: InferenceSae) -> InferenceSae:
    norms = torch.linalg.vector_norm(sae.W_dec, dim=1).clamp_min(_SMALLEST_NORM)
    changes: dict[str, Tensor] = {
        "W_enc": sae.W_enc * norms,
        "b_enc": sae.b_enc * norms,
        "W_dec": sae.W_dec / norms[:, None],
    }
    if sae.threshold is not None:
        changes["threshold"] = sae.threshold * norms
    if sae.b_mag is not None:
        changes["b_mag"] = sae.b_mag * norms
    if sae.facts.selection == "topk":
        changes["rank"] = (1 if sae.rank is None else sae.rank) / norms
    is_scalar = sae.facts.selection == "batchtopk"
    facts = replace(sae.facts, selection="jumprelu") if is_scalar else sae.facts
    return sae.changed(changes, facts=facts)


def raw_scale(sae: InferenceSae, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
    """Return what normalisation took out of raw activations: a latent adds its value · its W_dec row · this to x̂."""
    vectors, statistics = sae._normalized(x)
    scale = vectors.new_full((len(vectors), 1), sae.scales.output) if statistics is None else statistics.scale
    return scale.view(*x.shape[:-1], 1)


_REQUIRED = ("W_enc", "b_enc", "W_dec", "b_dec")
_OPTIONAL = ("threshold", "b_mag", "r_mag", "W_skip", "rank")
_NEEDS: dict[str, tuple[str, ...]] = {
    "topk": (), "relu": (), "batchtopk": ("threshold",), "jumprelu": ("threshold",), "gated": ("b_mag", "r_mag"),
}  # fmt: skip


def _check(facts: SaeFacts, tensors: Mapping[str, Tensor]) -> None:
    missing = [name for name in (*_REQUIRED, *_NEEDS[facts.selection]) if name not in tensors]
    if missing:
        raise ConfigError(f"an SAE with the selection {facts.selection} needs {', '.join(missing)}")
    n_latents, d_model, d_out = facts.n_latents, facts.d_model, tensors["b_dec"].shape[-1]
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_model, n_latents), "W_dec": (n_latents, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_model),
    }  # fmt: skip
    for name, tensor in tensors.items():
        shape = () if name == "threshold" and facts.selection == "batchtopk" else shapes.get(name, (n_latents,))
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"{name} has the shape {tuple(tensor.shape)}; with {n_latents} latents of {d_model} dimensions it is "
                f"{shape}"
            )
        if not tensor.is_floating_point():
            raise ConfigError(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}, not floats")
        if not bool(tensor.isfinite().all()):
            raise ConfigError(f"{name} has values that are not finite (NaN or infinity)")
    if facts.subtracts_bias and d_out != d_model:
        raise ConfigError(f"b_dec of {d_out} dimensions cannot be subtracted from an input of {d_model}")
    if facts.selection == "topk" and not 0 < (facts.k or 0) <= n_latents:
        raise ConfigError(f"k = {facts.k} does not fit {n_latents} latents")
