"""The activations themselves from layer to layer: how alike neighbours are, and how large they get."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from worker.evaluation.bootstrap import ContextBootstrap, ratio
from worker.evaluation.context import EvaluationContext
from worker.evaluation.heldout_text import Text
from worker.evaluation.layers.batches import layer_batches
from worker.evaluation.metric import Score

PHASE = "layers: activations"


class LayerVectors(NamedTuple):
    """Sums over the tokens of each context, on the CPU, float64."""

    n_tokens: Float[Tensor, " n_contexts"]
    norms: Float[Tensor, "n_contexts n_layers"]
    """Σ ‖x_l‖."""
    cosines: Float[Tensor, "n_contexts n_pairs"]
    """Σ cos(x_l − μ_l, x_m − μ_m) of each layer l and the next one m; μ the means over all tokens."""
    raw_cosines: Float[Tensor, "n_contexts n_pairs"]
    """Σ cos(x_l, x_m)."""


def layer_vectors(contexts: Sequence[EvaluationContext], text: Text) -> LayerVectors:
    """Return the sums of a text: two passes over it, the first for the means; kept in the store."""
    hooks = [str(context.model()[0].hook) for context in contexts]
    first, last = (int(number) for number in text.numbers[[0, -1]])
    of = contexts[0].of("layers", hook=None, hooks=hooks, contexts=[first, last, len(text)])
    found = contexts[0].store.get(of, lambda: _measured(contexts, text)._asdict())
    return LayerVectors(**found)


def vector_scores(found: LayerVectors, layers: Sequence[int], generator: torch.Generator) -> Iterator[Score]:
    """Yield mean norms by layer and mean cosines of neighbours, with 90% intervals by a bootstrap over contexts."""
    n = int(found.n_tokens.sum())
    bootstrap = ContextBootstrap(len(found.n_tokens), generator)
    pairs = [f"layers={one}-{other}" for one, other in pairwise(layers)]
    kinds = {
        ("activation_norm", ""): (found.norms, [f"layer={layer}" for layer in layers]),
        ("adjacent_cosine", ""): (found.cosines, pairs),
        ("adjacent_cosine", "raw"): (found.raw_cosines, [f"raw, {pair}" for pair in pairs]),
    }
    for (metric, plain), (sums, variants) in kinds.items():
        for variant, column in ((plain, sums.mean(1)), *zip(variants, sums.unbind(1), strict=True)):
            columns = torch.stack([column, found.n_tokens], dim=1)
            yield bootstrap(columns).estimate(ratio).score(metric, variant, n=n)


def _measured(contexts: Sequence[EvaluationContext], text: Text) -> LayerVectors:
    n_contexts, n_layers = len(text), len(contexts)
    means, n_tokens = torch.zeros(0), 0
    for batch in layer_batches(contexts, text, PHASE):
        sums = torch.stack([x.sum(0, dtype=torch.float64) for x in batch.vectors])
        means = means + sums if n_tokens else sums
        n_tokens += len(batch.rows)
    means = (means / n_tokens).float()
    sums_of = {"n_tokens": 1, "norms": n_layers, "cosines": n_layers - 1, "raw_cosines": n_layers - 1}
    found = {
        name: torch.zeros(n_contexts, width, dtype=torch.float64, device=means.device)
        for name, width in sums_of.items()
    }
    for batch in layer_batches(contexts, text, PHASE):
        x = torch.stack([*batch.vectors])
        columns = {
            "n_tokens": torch.ones_like(batch.rows)[None],
            "norms": x.norm(dim=-1),
            "cosines": _of_neighbours(x - means[:, None]),
            "raw_cosines": _of_neighbours(x),
        }
        for name, values in columns.items():
            found[name].index_add_(0, batch.rows, values.double().T)
    return LayerVectors(found["n_tokens"][:, 0], found["norms"], found["cosines"], found["raw_cosines"])


def _of_neighbours(x: Float[Tensor, "n_layers n_tokens d_model"]) -> Float[Tensor, "n_pairs n_tokens"]:
    return functional.cosine_similarity(x[:-1], x[1:], dim=-1)
