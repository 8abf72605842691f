"""What is timed to choose between implementations: inputs of a shape, one run, and whether two results agree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worker.sae.compiled.operations import Operations

_SAME_PLACES = 0.5
"""Share of the selected indices that must be equal: rounding swaps neighbours, a wrong kernel leaves next to none."""


class Shape(NamedTuple):
    """What a choice depends on, beside the machine."""

    device: str
    """Type of the device: cpu or cuda."""
    n_tokens: int
    d_model: int
    n_latents: int
    k: int
    """Latents per token, or k_aux."""
    dtype: torch.dtype
    """Of the encoder's product."""


class AutotuneCase(NamedTuple):
    """One part of a step."""

    fields: tuple[str, ...]
    """The operations that are chosen together."""
    inputs: Callable[[Shape], dict[str, Any]]
    """Random tensors, the same at each call."""
    run: Callable[[Operations, dict[str, Any]], tuple[Tensor, ...]]

    def check(self, found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        """Compare two results.

        Raises:
            ValueError: they are not the same but for rounding.
        """
        tolerance = 2e-2 if dtype.itemsize < 4 else 1e-3
        for one, other in zip(found, wanted, strict=True):
            if one.is_floating_point():
                gap = torch.linalg.vector_norm(one.double() - other.double())
                agree = bool(gap <= tolerance * torch.linalg.vector_norm(other.double()))
            else:
                agree = bool((one == other).double().mean() >= _SAME_PLACES)
            if not agree:
                raise ValueError("its result differs from that of plain torch")


def _generator(shape: Shape) -> torch.Generator:
    return torch.Generator(shape.device).manual_seed(0)


def _chosen(shape: Shape) -> dict[str, Any]:
    """Return what the gradients need; latents are as unevenly popular as those of an SAE, P(rank r) ~ 1/r."""
    generator = _generator(shape)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=shape.device)

    uniform = torch.rand(shape.n_tokens, shape.k, generator=generator, device=shape.device, dtype=torch.float64)
    indices = (float(shape.n_latents) ** uniform - 1).long().clamp_(0, shape.n_latents - 1)
    rows, table = (shape.n_tokens, shape.d_model), (shape.n_latents, shape.d_model)
    return {"acts": draw(*indices.shape).abs(), "indices": indices, "gradient": draw(*rows), "x": draw(*rows),
            "W": draw(*table), "b_pre": draw(shape.d_model),
            "silent": torch.arange(shape.n_latents, device=shape.device)}  # fmt: skip


def _dense(shape: Shape) -> dict[str, Any]:
    generator = _generator(shape)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=shape.device)

    x, W = draw(shape.n_tokens, shape.d_model), draw(shape.n_latents, shape.d_model)
    return {"x": x.to(shape.dtype), "W": W.to(shape.dtype), "b": draw(shape.n_latents), "k": shape.k}


def _optimizer(shape: Shape) -> dict[str, Any]:
    generator = _generator(shape)
    size = (shape.n_latents, shape.d_model)
    w, g, m, v, average = (torch.randn(size, generator=generator, device=shape.device) for _ in range(5))
    w /= torch.linalg.vector_norm(w, dim=1, keepdim=True)
    scalars = torch.tensor([1e-3, 1.0, 0.5, 1e-3], device=shape.device)
    return {"state": (w, g, m, v.square_(), average), "scalars": scalars}


def _adam(operations: Operations, at: dict[str, Any]) -> tuple[Tensor, ...]:
    w, _, m, v, average = at["state"]
    squares = operations.adam(*at["state"], at["scalars"], betas=[0.9, 0.999], eps=6.25e-10, sphere=True)
    return w, m, v, average, squares


TRIALS = {
    "encode": AutotuneCase(
        ("encode", "block_maxima", "select", "encode_top_k"),
        _dense,
        lambda operations, at: operations.encode_top_k(at["x"], at["W"], at["b"], k=at["k"]),
    ),
    "decode": AutotuneCase(
        ("decode", "reconstruction_error"),
        _chosen,
        lambda operations, at: operations.reconstruction_error(
            at["x"], at["acts"], at["indices"], at["W"], at["b_pre"]
        ),
    ),
    "sample": AutotuneCase(
        ("sampled_product",),
        _chosen,
        lambda operations, at: (operations.sampled_product(at["gradient"], at["indices"], at["W"]),),
    ),
    "gradients": AutotuneCase(
        ("latent_gradients", "add_latent_gradients", "sums_by_latent"),
        _chosen,
        lambda operations, at: operations.latent_gradients(at["acts"], at["indices"], at["gradient"], at["x"], at["W"]),
    ),
    "since_fired": AutotuneCase(
        ("count_tokens_since_fired",),
        _chosen,
        lambda operations, at: (operations.count_tokens_since_fired(at["acts"], at["indices"], at["silent"]),),
    ),
    "adam": AutotuneCase(("adam", "gradient_squares"), _optimizer, _adam),
}
"""By the name of the part."""
