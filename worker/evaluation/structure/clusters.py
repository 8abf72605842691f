"""Clusters of latents by the singular dimensions that their encoder vectors lie in.

W_encᵀ = U Σ Vᵀ, rows of U scaled to length 1 and squared: each says how a latent divides over the singular dimensions.
Source: Gao et al. 2024, appendix E.7; two clusters by k-means are our deterministic form of what the map shows.
"""

import importlib
import warnings
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worker.evaluation.metric import Score

_SMALLEST = 1e-6
"""Singular values below this part of the largest are 0: their directions are rounding."""
_ITERATIONS = 50


class Clusters(NamedTuple):
    """Two clusters of latents, and the dimensions that are theirs."""

    is_small: Bool[Tensor, " n_latents"]
    """Whether a latent is in the cluster with fewer of them."""
    is_small_dim: Bool[Tensor, " n_dims"]
    """Whether a singular dimension, largest first, holds more of the small cluster's rows than of the others'."""
    separation: float
    """Variance between the clusters / all variance."""


class UmapOrder(NamedTuple):
    """A 1-D UMAP of some latents."""

    latents: Int[Tensor, " n"]
    embedding: Float[Tensor, " n"]


def squared_rows(W_enc: Float[Tensor, "d_model n_latents"]) -> Float[Tensor, "n_latents n_dims"]:
    """Return the squared rows of U, each with sum 1; columns by falling singular value."""
    wide = W_enc.detach().double()
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    order = values.argsort(descending=True)[: min(wide.shape)]
    singular = values[order].clamp_min(0).sqrt()
    order, singular = (found[singular > _SMALLEST * singular[0]] for found in (order, singular))
    squares = ((wide.T @ vectors[:, order]) / singular).square()
    rows: Tensor = (squares / squares.sum(1, keepdim=True).clamp_min(1e-300)).float().cpu()
    return rows


def two_clusters(rows: Float[Tensor, "n_latents n_dims"]) -> Clusters:
    """Divide latents by k-means, begun at the two sides of the first principal component: the same every time."""
    n_latents, n_dims = rows.shape
    if not n_dims:
        return Clusters(torch.zeros(n_latents, dtype=torch.bool), torch.zeros(0, dtype=torch.bool), 0.0)
    values = rows.double()
    centred = values - values.mean(0)
    is_side = centred @ torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1] > 0
    for _ in range(_ITERATIONS):
        if is_side.all() or not is_side.any():
            break
        ends = values[~is_side].mean(0), values[is_side].mean(0)
        axis = ends[1] - ends[0]
        nearer = values @ axis > (ends[0] + ends[1]) @ axis / 2
        if nearer.equal(is_side):
            break
        is_side = nearer
    is_small = is_side if is_side.sum() * 2 <= n_latents else ~is_side
    if not is_small.any():
        return Clusters(is_small, torch.zeros(n_dims, dtype=torch.bool), 0.0)
    small, large = values[is_small].mean(0), values[~is_small].mean(0)
    share = float(is_small.double().mean())
    between = share * (1 - share) * (small - large).square().sum()
    return Clusters(is_small, small > large, float(between / centred.square().sum() * n_latents))


def umap_order(rows: Float[Tensor, "n_latents n_dims"], *, most: int, generator: torch.Generator) -> UmapOrder | None:
    """Return a 1-D UMAP of the rows, of a sample where there are more than `most`; None: umap-learn is not installed.

    Euclidean, as the paper's distances are; with a seed, and so on one thread.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImportWarning)  # that TensorFlow is missing: another form of UMAP wants it
            umap: Any = importlib.import_module("umap")
    except ImportError:
        return None
    chosen = torch.randperm(len(rows), generator=generator)[:most].sort().values
    seed = int(torch.randint(2**31, (1,), generator=generator))
    n_neighbors = max(2, min(15, len(chosen) - 1))
    mapper = umap.UMAP(n_components=1, metric="euclidean", n_neighbors=n_neighbors, random_state=seed, n_jobs=1)
    return UmapOrder(chosen, torch.from_numpy(mapper.fit_transform(rows[chosen].numpy())).squeeze(1).float())


def cluster_scores(
    W_enc: Float[Tensor, "d_model n_latents"], found: Clusters, generator: torch.Generator
) -> list[Score]:
    """Return sizes, norms and separation of the two clusters, and the separation in a Gaussian encoder's rows."""
    n = len(found.is_small)
    gaussian = two_clusters(squared_rows(torch.randn(W_enc.shape, generator=generator)))
    scores = [
        Score("cluster_latents", float(found.is_small.double().mean()), n=n),
        Score("cluster_dims", float(found.is_small_dim.double().mean()), n=len(found.is_small_dim)),
        Score("cluster_separation", found.separation, n=n),
        Score("cluster_separation", gaussian.separation, "gaussian", n=n),
    ]
    if found.is_small.any():
        norms = W_enc.detach().float().norm(dim=0).cpu()
        small, large = float(norms[found.is_small].mean()), float(norms[~found.is_small].mean())
        details = {"small": small, "large": large}
        scores.append(Score("cluster_norm_ratio", small / large, n=n, details=details))
    return scores


def umap_score(order: UmapOrder, found: Clusters) -> Score:
    """Return the share of latents that two clusters of the map divide as `found` does."""
    by_map = two_clusters(order.embedding[:, None]).is_small
    same = float((by_map == found.is_small[order.latents]).double().mean())
    return Score("umap_agreement", max(same, 1 - same), n=len(order.latents))
