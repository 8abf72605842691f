"""How often latents fire: the distribution of densities, and how much of L0 dense latents make up."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worker.evaluation.metric import Score
from worker.evaluation.structure.activity import Activity, Tokens

DENSE = {">10%": 0.1, ">50%": 0.5}
FLAGGED = 0.5
"""Share of L0 by latents denser than 10% above which the SAE is a dense solution (Gao et al. 2024, appendix E.5)."""
EDGES = [-7 + i / 4 for i in range(29)]
"""Of the histogram, log10 of density: the same for every SAE."""
N_RESAMPLES = 200


def density_scores(activity: Activity, tokens: Tokens, generator: torch.Generator) -> list[Score]:
    """Return what the densities come to, with 90% intervals by a bootstrap over blocks of contexts."""
    found = _summary(activity.density)
    ends = _interval(activity, tokens, generator)
    alive = activity.density[activity.density > 0]
    counts = torch.histogram(alive.log10(), torch.tensor(EDGES, dtype=alive.dtype)).hist
    n = activity.density.numel()
    details: dict[str, dict[str, Any]] = {
        "median": {"log10_edges": EDGES, "latents": counts.int().tolist(), "silent": n - len(alive)},
        ">10%": {"flagged": found[">10%"] > FLAGGED},
    }
    scores = [Score("silent_share", 1 - len(alive) / n, n=n, details={"tokens": int(activity.n_tokens.sum())})]
    for number, (variant, value) in enumerate(found.items()):
        low, high = ends[:, number].tolist()
        metric = "dense_mass" if variant in DENSE else "latent_density"
        scores.append(Score(metric, value, variant, low=low, high=high, n=n, details=details.get(variant, {})))
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


def _summary(density: Float[Tensor, " n_latents"]) -> dict[str, float]:
    alive, total = density[density > 0], density.sum().clamp_min(1e-30)
    masses = {name: float(density[density > least].sum() / total) for name, least in DENSE.items()}
    return {"median": float(alive.median()) if len(alive) else 0.0, "max": float(density.max()), **masses}


def _interval(activity: Activity, tokens: Tokens, generator: torch.Generator) -> Float[Tensor, "2 n_summaries"]:
    n_blocks = tokens.n_blocks
    block_tokens = tokens.blocks.bincount().double()
    draws = torch.randint(n_blocks, (N_RESAMPLES, n_blocks), generator=generator)
    found = []
    for draw in draws:
        weights = draw.bincount(minlength=n_blocks).double()
        density = (weights @ activity.block_active) / (weights @ block_tokens)
        found.append(list(_summary(density).values()))
    ends = torch.tensor([0.05, 0.95], dtype=torch.float64)
    return torch.tensor(found, dtype=torch.float64).quantile(ends, dim=0)
