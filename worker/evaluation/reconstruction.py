"""Measure how well an autoencoder reconstructs the held-out set: fvu, L0 and what other suites report beside them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from orchestrator.config.job import Part
from orchestrator.errors import ConfigError, OrchError, SubjectError
from orchestrator.estimates.memory import EVALUATED_TOKENS
from worker.evaluation.bootstrap import ContextBootstrap
from worker.evaluation.context import EvaluationContext
from worker.evaluation.metric import Measured, NotMeasured, Score, SubjectSae
from worker.sae.inference import InferenceSae, decode_sparse, normalized
from worker.sae.model import SparseAutoencoder
from worker.sae.sparse import reconstruction_error
from worker.sae.tiled_encode import select


class Reconstruction(NamedTuple):
    """How well a model reconstructs the held-out set."""

    fvu: float
    """Σ‖x − x̂‖² / Σ‖x − μ‖², μ the mean of that set."""
    l0: float
    """Mean active latents per token."""


@torch.no_grad()
def measure_reconstruction(
    model: SparseAutoencoder,
    heldout: Float[Tensor, "n_tokens d_model"],
    *,
    spread: float | None = None,
    chunk_tokens: int = EVALUATED_TOKENS,
) -> Reconstruction:
    """Measure fvu and L0 on the held-out set; sums are kept in float64, so chunks do not matter.

    `spread` is `total_spread(heldout)`, where that is known.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=heldout.device)
    for x in torch.split(heldout, chunk_tokens):
        sums += torch.stack(_error_and_l0(model, x))
    model.train(was_training)
    error, n_active = sums.tolist()
    spread = total_spread(heldout, chunk_tokens=chunk_tokens) if spread is None else spread
    return Reconstruction(error / spread if spread else math.nan, l0=n_active / len(heldout))


def total_spread(x: Float[Tensor, "n_tokens d_model"], *, chunk_tokens: int = EVALUATED_TOKENS) -> float:
    """Return Σ‖x − μ‖², μ the mean of these vectors."""
    mean = x.mean(0, dtype=torch.float64).to(x.dtype)
    parts = [(part - mean).square().sum(dtype=torch.float64) for part in torch.split(x, chunk_tokens)]
    return float(torch.stack(parts).sum())


def _error_and_l0(model: SparseAutoencoder, x: Float[Tensor, "n_tokens d_model"]) -> tuple[Tensor, Tensor]:
    """Return Σ‖x − x̂‖² and the number of active latents, of all tokens."""
    if type(model) is SparseAutoencoder and model.selects_per_token:
        code = select(x, model.b_pre, (model.W_enc, model.b_enc), k=model.k, dtype=model.product_dtype)
        _, squares = reconstruction_error(x, code.top_acts, code.top_indices, model.W_dec, model.b_pre)
        error, top_acts = squares.sum(dtype=torch.float64), code.top_acts
    else:
        _, top_acts, top_indices = model.encode(x)
        error = (x - model.decode(top_acts, top_indices)).square().sum(dtype=torch.float64)
    return error, (top_acts > 0).sum(dtype=torch.float64)


COLUMNS = (
    "n", "error", "spread", "error_normalised", "spread_normalised", "square", "square_reconstructed", "product",
    "cosine", "norm_ratio", "legacy", "l0", "l1",
)  # fmt: skip
"""Sums over tokens: of 1, ‖x − x̂‖², ‖x − μ‖², the same two of normalised vectors, ‖x‖², ‖x̂‖², x·x̂, their cosine,
‖x̂‖ / ‖x‖, ‖x − x̂‖² / ‖x − μ‖², active latents, Σ z."""
Statistic = Callable[[Mapping[str, Tensor]], Tensor]
"""Takes the sums by their names."""


def _mean(column: str) -> Statistic:
    return lambda sums: sums[column] / sums["n"]


def _saebench(sums: Mapping[str, Tensor], d_model: int) -> Tensor:
    """Return SAEBench's explained variance: from E‖x‖² it subtracts the squared mean of x², not ‖E x‖²."""
    square = sums["square"] / sums["n"]
    return 1 - sums["error"] / sums["n"] / (square - (square / d_model).square())


def _statistics(d_model: int) -> dict[tuple[str, str], Statistic]:
    """Return what is scored, by metric and variant."""
    return {
        ("fvu", ""): lambda sums: sums["error_normalised"] / sums["spread_normalised"],
        ("fvu", "raw"): lambda sums: sums["error"] / sums["spread"],
        ("mse", ""): _mean("error_normalised"),
        ("mse", "raw"): _mean("error"),
        ("explained_variance", "raw"): lambda sums: 1 - sums["error"] / sums["spread"],
        ("explained_variance", "saebench"): lambda sums: _saebench(sums, d_model),
        ("explained_variance", "saebench legacy"): lambda sums: 1 - sums["legacy"] / sums["n"],
        ("cosine", ""): _mean("cosine"),
        ("norm_ratio", ""): _mean("norm_ratio"),
        ("relative_bias", ""): lambda sums: sums["square_reconstructed"] / sums["product"],
        ("l0", ""): _mean("l0"),
        ("l1", ""): _mean("l1"),
    }


@torch.no_grad()
def measure(
    saes: Sequence[SubjectSae], context: EvaluationContext, options: Part | None
) -> Iterator[Measured | NotMeasured]:
    """Yield how well each SAE reconstructs the vectors, raw and as it reads them, with 90% intervals over contexts.

    Vectors of a distribution are drawn one by one: each is a context of its own.
    Source: numerics 8; SAEBench's core metrics.
    """
    x = context.vectors
    if context.drawn is None:
        is_measured = context.model()[1].heldout.is_measured
        of_context = is_measured.nonzero()[:, 0].to(x.device)
        n_contexts = len(is_measured)
    else:
        of_context, n_contexts = torch.arange(len(x), device=x.device), len(x)
    bootstrap = ContextBootstrap(n_contexts, context.generator("bootstrap"))
    for number, entry in enumerate(saes):

        def told(share: float, number: int = number) -> None:
            context.progress("reconstruction", (number + share) / len(saes))

        try:
            sums, fired = _sums(entry.sae, x, (of_context, n_contexts), told)
            yield Measured(entry.job_id, [*_scores(sums, fired, bootstrap, d_model=x.shape[1])])
        except (OrchError, RuntimeError) as error:
            yield NotMeasured(entry.job_id, error)


def check_reads(sae: InferenceSae, d_model: int) -> None:
    """Check that an SAE reconstructs activations of this width.

    Raises:
        ConfigError: it is a transcoder, or reads another width.
    """
    if sae.facts.is_transcoder or sae.W_dec.shape[1] != sae.facts.d_model:
        raise ConfigError("it is a transcoder: it predicts another place, and reconstructs nothing of what it reads")
    if sae.facts.d_model != d_model:
        raise ConfigError(f"it reads {sae.facts.d_model} dimensions, and the activations of this place have {d_model}")


def _sums(
    sae: InferenceSae,
    x: Float[Tensor, "n_tokens d_model"],
    contexts: tuple[Int[Tensor, " n_tokens"], int],
    told: Callable[[float], None],
) -> tuple[Float[Tensor, "n_contexts columns"], Int[Tensor, " n_latents"]]:
    """Return the sums of each context, and how often each latent fired; each vector is encoded once."""
    check_reads(sae, x.shape[1])
    of_context, n_contexts = contexts
    mean = x.mean(0, dtype=torch.float64).to(x.dtype)
    parts = torch.split(x, EVALUATED_TOKENS)
    centre = torch.stack([normalized(sae, part).vectors.sum(0, dtype=torch.float64) for part in parts]).sum(0) / len(x)
    sums = torch.zeros(n_contexts, len(COLUMNS), dtype=torch.float64, device=x.device)
    fired = torch.zeros(sae.facts.n_latents, dtype=torch.long, device=x.device)
    for number, part in enumerate(parts):
        told(number / len(parts))
        found, n_active, l1 = _reconstructed(sae, part, fired)
        if not bool(found.isfinite().all()):
            raise SubjectError("its reconstructions have values that are not finite")
        vectors, _, scale = normalized(sae, part)
        error, spread = (part - found).square().sum(1), (part - mean).square().sum(1)
        square, product = found.square().sum(1), (part * found).sum(1)
        columns = {
            "n": torch.ones_like(error),
            "error": error,
            "spread": spread,
            "error_normalised": error / scale[:, 0].square(),
            "spread_normalised": (vectors - centre).square().sum(1),
            "square": part.square().sum(1),
            "square_reconstructed": square,
            "product": product,
            "cosine": functional.cosine_similarity(part, found, dim=1),
            "norm_ratio": square.sqrt() / part.norm(dim=1).clamp_min(1e-8),
            "legacy": error / spread,
            "l0": n_active,
            "l1": l1,
        }
        values = torch.stack([columns[name].double() for name in COLUMNS], dim=1)
        sums.index_add_(0, of_context[number * EVALUATED_TOKENS :][: len(part)], values)
    return sums, fired


def _reconstructed(sae: InferenceSae, x: Tensor, fired: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x̂, the active latents of each vector and the sum of their values; count in `fired` which they were."""
    if sae.facts.selection == "topk":
        acts = sae.encode_sparse(x)
        is_active = acts.values > 0
        fired += acts.indices[is_active].bincount(minlength=len(fired))
        return decode_sparse(sae, acts).float(), is_active.sum(1), acts.values.sum(1)
    latents = sae.encode(x)
    is_active = latents > 0
    fired += is_active.sum(0)
    return sae.decode(latents).float(), is_active.sum(1), latents.sum(1)


def _scores(sums: Tensor, fired: Tensor, bootstrap: ContextBootstrap, *, d_model: int) -> Iterator[Score]:
    n = int(sums[:, 0].sum())
    resampled = bootstrap(sums)
    for (metric, variant), statistic in _statistics(d_model).items():
        yield resampled.estimate(partial(_of_named, statistic)).score(metric, variant, n=n)
    density = fired.double().cpu() / n
    yield Score("alive", float((fired > 0).double().mean()), n=len(fired), details={"unit": "latents", "tokens": n})
    yield Score("density", float(density.mean()), n=len(fired), details={"unit": "latents", **_histogram(density)})


def _of_named(statistic: Statistic, sums: Tensor) -> Tensor:
    return statistic(dict(zip(COLUMNS, sums.unbind(-1), strict=True)))


_DECADES = 6
"""Of density, from 10⁻⁶ to 1: four bins each, and one of what never fires."""


def _histogram(density: Float[Tensor, " n_latents"]) -> dict[str, object]:
    edges = torch.linspace(-_DECADES, 0, 4 * _DECADES + 1, dtype=torch.float64)
    of_alive = density[density > 0].log10().clamp(-_DECADES, 0)
    counts = torch.histogram(of_alive, edges).hist
    return {"log10_edges": edges.tolist(), "counts": counts.long().tolist(), "never": int((density == 0).sum())}
