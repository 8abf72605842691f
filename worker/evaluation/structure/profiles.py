"""Where in a context latents fire: at its first token, later or earlier, at what was there before.

Source: Gao et al. 2024, appendix E.6 (recurring dense features).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from worker.evaluation.metric import Score
from worker.evaluation.structure.activity import CHUNK_VALUES, REGRESSORS, Activity, Tokens
from worker.sae.inference import InferenceSae

FALSE_SHARE = 0.05
"""Of the latents that are called correlated, the expected share that are not (Benjamini and Hochberg 1995)."""
LEAST_CORRELATION = 0.1
LEAST_BLOCKS = 10
"""Blocks of contexts in which a latent must fire to be tested."""
LEAST_FIRST = 10
"""First tokens without which nothing is said of them."""
MODE_RATIO = 2.0
"""Of a first-position latent: the mode of its values there to the mean of those it has elsewhere, at least."""
_LISTED = 20


class FirstPosition(NamedTuple):
    """A latent that fires at the first token of every context."""

    latent: int
    mode: float
    """Of its values there."""
    ratio: float | None
    """Of the mode to the mean of the values > 0 elsewhere; None: it is silent there."""
    density_elsewhere: float


class Correlations(NamedTuple):
    """Of each latent with a regressor, first tokens left out."""

    r: Float[Tensor, " n_latents"]
    """0 where it is not tested."""
    is_found: Bool[Tensor, " n_latents"]
    """Whether it is beyond chance and |r| is large enough."""
    n_tested: int


def correlate(activity: Activity, tokens: Tokens, number: int) -> Correlations:
    """Return the correlations with a regressor, tested by t over blocks of contexts, with their number accounted for.

    Of the block b: s_b = Σ (a − ā) · q. Were there no correlation, the s_b would scatter about 0.
    """
    regressor = tokens.regressors[number : number + 1]
    (_, n), (_, total), (_, squares) = activity.n_tokens, activity.powers[:, 0], activity.powers[:, 1]
    mean = total / n
    s = activity.products[number] - mean * tokens.block_sums(regressor).T
    norm = (regressor.square().sum() * (squares - n * mean.square()).clamp_min(0)).sqrt()
    n_blocks = (activity.block_active > 0).sum(0)
    is_tested = (n_blocks >= LEAST_BLOCKS) & (norm > 0)
    r = torch.where(is_tested, s.sum(0) / norm, 0.0)
    t = s.mean(0) / (s.std(0) / len(s) ** 0.5)
    p = np.atleast_1d(2 * stats.t.sf(t[is_tested].abs().numpy(), (n_blocks[is_tested] - 1).numpy()))
    is_found = torch.zeros_like(is_tested)
    is_found[is_tested] = torch.from_numpy(stats.false_discovery_control(p) <= FALSE_SHARE) if len(p) else is_found[:0]
    return Correlations(r, is_found & (r.abs() >= LEAST_CORRELATION), len(p))


@torch.no_grad()
def first_position_latents(
    sae: InferenceSae, first: Float[Tensor, "n_first d_model"], activity: Activity
) -> list[FirstPosition]:
    """Return the latents that fire at every first token, larger there than elsewhere; the highest ratio first."""
    fires = (activity.n_active[0] == len(first)).nonzero().squeeze(1)
    size = max(1, CHUNK_VALUES // sae.facts.n_latents)
    values = torch.cat([sae.encode(x)[:, fires.to(x.device)].cpu() for x in torch.split(first, size)])
    found = []
    for latent, own in zip(fires.tolist(), values.T, strict=True):
        n_elsewhere = float(activity.n_active[1, latent])
        ratio = mode_of(own) * n_elsewhere / float(activity.powers[1, 0, latent]) if n_elsewhere else None
        if ratio is None or ratio >= MODE_RATIO:
            density = n_elsewhere / max(1.0, float(activity.n_tokens[1]))
            found.append(FirstPosition(latent, mode_of(own), ratio, density))
    return sorted(found, key=lambda one: -np.inf if one.ratio is None else -one.ratio)


def profile_scores(
    correlations: Mapping[str, Correlations], first: list[FirstPosition] | None, *, n_first: int
) -> list[Score]:
    """Return how many latents there are of each kind; `first` is None where no first tokens are measured."""
    scores = []
    if first is not None:
        details: dict[str, Any] = {"latents": [one._asdict() for one in first[:_LISTED]]}
        scores.append(Score("first_position_latents", len(first), n=n_first, details=details))
    for metric, sign, variant in (("position", 1, "later"), ("position", -1, "earlier"), ("repetition", 1, "")):
        found = correlations[metric]
        chosen = (found.is_found & (found.r * sign > 0)).nonzero().squeeze(1)
        strongest = chosen[found.r[chosen].abs().argsort(descending=True)][:_LISTED]
        details = {"latents": strongest.tolist(), "r": [round(r, 4) for r in found.r[strongest].tolist()]}
        scores.append(Score(f"{metric}_latents", len(chosen), variant, n=found.n_tested, details=details))
    return scores


def mode_of(values: Float[Tensor, " n"]) -> float:
    """Return the mean of the shortest interval that holds half of the values."""
    ordered = values.sort().values
    half = (len(values) + 1) // 2
    start: Int[Tensor, ""] = (ordered[half - 1 :] - ordered[: len(values) - half + 1]).argmin()
    return float(ordered[int(start) : int(start) + half].mean())


def all_correlations(activity: Activity, tokens: Tokens) -> dict[str, Correlations]:
    """Return the correlations by the name of the regressor; none of a synthetic distribution."""
    return {name: correlate(activity, tokens, i) for i, name in enumerate(REGRESSORS[: len(tokens.regressors)])}
