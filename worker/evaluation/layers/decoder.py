"""Directions of the decoder beside each other, and beside the vectors of the model's vocabulary."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from worker.evaluation.metric import Score
from worker.evaluation.structure.activity import CHUNK_VALUES
from worker.evaluation.structure.density import rounded
from worker.evaluation.structure.directions import directions
from worker.sae.inference import InferenceSae
from worker.subject.model import Subject

AS_RELEASED = "as released"


def highest_cosines(
    rows: Float[Tensor, "n_latents d_out"],
) -> tuple[Float[Tensor, " n_latents"], Float[Tensor, " n_latents"]]:
    """Return of each unit row the highest cosine with any other, and that with those before it alone, at least 0.

    The second is the strict upper triangle of the released code (figures/mmcs.py, below 16,384 latents).
    """
    size = max(1, CHUNK_VALUES // len(rows))
    best, before = [], []
    for start in range(0, len(rows), size):
        cosines = rows[start : start + size] @ rows.T
        before.append(cosines.tril(start - 1).amax(1).clamp_min(0))
        own = torch.arange(len(cosines), device=rows.device)
        cosines[own, own + start] = -torch.inf
        best.append(cosines.amax(1))
    return torch.cat(best), torch.cat(before)


def nearest_tokens(
    rows: Float[Tensor, "n_latents d_out"], vectors: Float[Tensor, "vocabulary d_out"]
) -> tuple[Float[Tensor, " n_latents"], Int[Tensor, " n_latents"]]:
    """Return of each unit row the highest cosine with any vector of the vocabulary, and whose that is."""
    units = functional.normalize(vectors.float(), dim=1)
    size = max(1, CHUNK_VALUES // len(units))
    found = [(part @ units.T).max(1) for part in torch.split(rows, size)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def decoder_scores(sae: InferenceSae, subject: Subject) -> tuple[list[Score], dict[str, Any]]:
    """Return the scores, and by name what is found of each latent.

    mmcs is of one latent undefined. Without a table of the width that the decoder writes to, or without an output
    matrix of its own, there is no cosine with it.
    """
    rows, scores, of_latents = directions(sae), [], {}
    if len(rows) > 1:
        best, before = highest_cosines(rows)
        scores += [_mean("mmcs", best), _mean("mmcs", before, AS_RELEASED)]
        of_latents["max_cosine"] = rounded(best)
    for name, vectors in _vocabulary(subject, rows.shape[1]):
        cosines, tokens = nearest_tokens(rows, vectors.to(rows.device))
        scores.append(_mean(f"{name}_cosine", cosines))
        of_latents |= {f"{name}_cosine": rounded(cosines), f"{name}_token": tokens.tolist()}
    return scores, of_latents


def _vocabulary(subject: Subject, width: int) -> Iterator[tuple[str, Tensor]]:
    modules = {
        "embedding": subject.model.get_input_embeddings(),
        "unembedding": getattr(subject.model, "get_output_embeddings", lambda: None)(),
    }
    for name, module in modules.items():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.shape[1] == width:
            yield name, weight.detach()


def _mean(metric: str, values: Float[Tensor, " n_latents"], variant: str = "") -> Score:
    values = values.double()
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return Score(metric, float(values.mean()), variant, error, n=len(values), details={"unit": "latents"})
