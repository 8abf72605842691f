"""Directions of the decoder: latents that point opposite ways, and latents that another SAE has too."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from worker.evaluation.metric import Score
from worker.evaluation.structure.activity import CHUNK_VALUES
from worker.sae.inference import InferenceSae

OPPOSING = -0.9
"""Cosine below which two latents are an opposing pair (Gao et al. 2024, appendix E.6)."""
RECURS = 0.9
"""Cosine above which a latent is in another SAE, too."""
N_DENSEST = 10
_LISTED = 20


class OpposingPair(NamedTuple):
    """Two latents whose decoder directions are nearly opposite."""

    first: int
    second: int
    cosine: float


class Match(NamedTuple):
    """The decoder directions of one SAE (here) held against those of another (there)."""

    best: Float[Tensor, " n_here"]
    """Highest cosine of each latent with any of the other SAE."""
    best_there: Float[Tensor, " n_there"]
    """The same the other way round."""
    matched: Float[Tensor, " n_matched"] | None
    """Cosines of the one-to-one matching with the highest sum, as many as the smaller SAE has; None: too large."""


def directions(sae: InferenceSae) -> Float[Tensor, "n_latents d_out"]:
    """Return the decoder's rows, of length 1."""
    return functional.normalize(sae.W_dec.detach().float(), dim=1)


def opposing_pairs(rows: Float[Tensor, "n_latents d_out"]) -> list[OpposingPair]:
    """Return all opposing pairs, each once."""
    found = []
    for start, cosines in _cosines(rows, rows):
        first, second = (cosines < OPPOSING).nonzero(as_tuple=True)
        is_upper = second > first + start
        first, second = first[is_upper], second[is_upper]
        pairs = zip((first + start).tolist(), second.tolist(), cosines[first, second].tolist(), strict=True)
        found += [OpposingPair(*pair) for pair in pairs]
    return found


def match(here: Float[Tensor, "n_here d_out"], there: Float[Tensor, "n_there d_out"], *, most_matched: int) -> Match:
    """Compare all latents of two SAEs; matched one to one (Hungarian) where neither has more than `most_matched`."""
    best, best_there = [], here.new_full((len(there),), -1.0)
    for _, cosines in _cosines(here, there):
        best.append(cosines.amax(1))
        best_there = torch.maximum(best_there, cosines.amax(0))
    matched = None
    if max(len(here), len(there)) <= most_matched:
        cosines = (here @ there.T).cpu()
        matched = cosines[linear_sum_assignment(cosines.numpy(), maximize=True)]
    return Match(torch.cat(best).cpu(), best_there.cpu(), matched)


def opposing_scores(pairs: list[OpposingPair], density: Float[Tensor, " n_latents"]) -> list[Score]:
    """Return the number of opposing pairs, and how many lie among the densest latents."""
    densest: Int[Tensor, " n"] = density.argsort(descending=True)[:N_DENSEST]
    among = [pair for pair in pairs if {pair.first, pair.second} <= set(densest.tolist())]
    strongest = sorted(pairs, key=lambda pair: pair.cosine)[:_LISTED]
    return [
        Score("opposing_pairs", len(pairs), n=len(density), details={"pairs": [p._asdict() for p in strongest]}),
        Score("opposing_pairs", len(among), "densest", n=len(densest), details={"pairs": [p._asdict() for p in among]}),
    ]


def match_scores(found: Match, label: str) -> list[Score]:
    """Return how much of an SAE another has too; the variant names the other."""
    n = len(found.best)
    back = {"back": float(found.best_there.mean()), "n_back": len(found.best_there)}
    recurring = {"back": float((found.best_there > RECURS).double().mean()), "n_back": len(found.best_there)}
    scores = [
        Score("max_cosine", float(found.best.mean()), label, n=n, details=back),
        Score("recurring_share", float((found.best > RECURS).double().mean()), label, n=n, details=recurring),
    ]
    if found.matched is not None:
        share = {"share_recurring": float((found.matched > RECURS).double().mean())}
        scores.append(Score("matched_cosine", float(found.matched.mean()), label, n=len(found.matched), details=share))
    return scores


def _cosines(here: Tensor, there: Tensor) -> Iterator[tuple[int, Tensor]]:
    size = max(1, CHUNK_VALUES // len(there))
    for start in range(0, len(here), size):
        yield start, here[start : start + size] @ there.T
