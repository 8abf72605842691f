"""On how many tokens of the vocabulary a latent fires: the effective number. Source: Gao et al. 2024, appendix E.7."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worker.evaluation.bootstrap import Estimate
from worker.evaluation.metric import Score

_N_RESAMPLES = 200


def effective_tokens(squares: Float[Tensor, "n_latents n_tokens"]) -> Float[Tensor, " n_latents"]:
    """Return m_i = exp(−Σ_v Ã_iv ln Ã_iv), Ã_i = A_i / Σ_v A_iv; nan where a latent is silent.

    A is the mean squared activation of each latent on each token of the vocabulary: m tokens that activate a latent
    alike give m. The paper prints the exponent without its sign, which would give 1/m.
    """
    shares = squares / squares.sum(1, keepdim=True)
    m: Tensor = torch.special.entr(shares).sum(1).exp()
    return m


def effective_token_scores(
    m: Float[Tensor, " n"], is_small: Bool[Tensor, " n"], generator: torch.Generator
) -> list[Score]:
    """Return medians over the latents that fire: of all, and of the small cluster and the others.

    The intervals are of the choice of latents: a bootstrap over them.
    """
    scores = []
    for variant, chosen in (("", torch.ones_like(is_small)), ("small", is_small), ("large", ~is_small)):
        values = m[chosen & m.isfinite()]
        if len(values):
            draws = torch.randint(len(values), (_N_RESAMPLES, len(values)), generator=generator)
            found = Estimate.of(float(values.median()), values[draws].median(1).values)
            scores.append(found.score("effective_tokens", variant, n=len(values), interval="over latents"))
    return scores
