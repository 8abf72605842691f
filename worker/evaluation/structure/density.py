"""How often latents fire: the distribution of densities, and how much of L0 dense latents make up."""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from worker.evaluation.bootstrap import ContextBootstrap
from worker.evaluation.metric import Score
from worker.evaluation.structure.activity import Activity, Tokens

DENSE = {">10%": 0.1, ">50%": 0.5}
FLAGGED = 0.5
"""Share of L0 by latents denser than 10% above which the SAE is a dense solution (Gao et al. 2024, appendix E.5)."""
EDGES = [-7 + i / 4 for i in range(29)]
"""Of the histogram, log10 of density: the same for every SAE."""
_RESAMPLES = 200


def density_scores(activity: Activity, tokens: Tokens, generator: torch.Generator) -> list[Score]:
    """Return what the densities come to, with 90% intervals by a bootstrap over blocks of contexts."""
    block_tokens = tokens.blocks.bincount().double()
    sums = torch.cat([block_tokens[:, None], activity.block_active], dim=1)
    resampled = ContextBootstrap(tokens.n_blocks, generator, resamples=_RESAMPLES)(sums)
    alive, n = activity.density[activity.density > 0], activity.density.numel()
    counts = torch.histogram(alive.log10(), torch.tensor(EDGES, dtype=alive.dtype)).hist
    scores = [Score("silent_share", 1 - len(alive) / n, n=n, details={"tokens": int(activity.n_tokens.sum())})]
    if not len(alive):
        return scores
    median, largest = (
        resampled.estimate(_median),
        resampled.estimate(lambda drawn: _densities(drawn).amax(-1)),
    )
    histogram = {"log10_edges": EDGES, "latents": counts.int().tolist(), "silent": n - len(alive)}
    scores += [
        median.score("latent_density", "median", n=n, **histogram),
        largest.score("latent_density", "max", n=n),
    ]
    for variant, least in DENSE.items():
        mass = resampled.estimate(partial(_mass, least))
        flag = {"flagged": mass.value > FLAGGED} if variant == ">10%" else {}
        scores.append(mass.score("dense_mass", variant, n=n, **flag))
    return scores


def latent_statistics(activity: Activity) -> dict[str, list[float | None]]:
    """Return by name what is kept of each latent: zero-centred moments over all tokens, None where it never fires.

    Skew E[a³] / E[a²]^1.5 and kurtosis E[a⁴] / E[a²]², as in the viewer of Gao et al.
    """
    mean, square, cube, fourth = activity.powers.sum(0) / activity.n_tokens.sum()
    values = {
        "density": activity.density,
        "mean": mean,
        "mean_square": square,
        "skew": cube / square**1.5,
        "kurtosis": fourth / square.square(),
    }
    return {name: rounded(found) for name, found in values.items()}


def rounded(values: Float[Tensor, " n"]) -> list[float | None]:
    """Return numbers for a file: six digits, None for what is not finite."""
    return [float(f"{value:.6g}") if value - value == 0 else None for value in values.tolist()]


def _densities(sums: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch n_latents"]:
    return sums[..., 1:] / sums[..., :1]


def _median(sums: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch"]:
    """Return the median density of the latents that fire."""
    density = _densities(sums)
    return torch.where(density > 0, density, torch.nan).nanmedian(-1).values


def _mass(least: float, sums: Float[Tensor, "*batch columns"]) -> Float[Tensor, "*batch"]:
    """Return the share of L0 by latents denser than `least`."""
    density = _densities(sums)
    return torch.where(density > least, density, 0.0).sum(-1) / density.sum(-1)
