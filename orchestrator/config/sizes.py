"""Sizes that a config leaves open: how many latents, and after how many silent tokens one is dead.

Loads nothing: `orch status` asks it of stored configs.
"""

import math
from typing import Literal

_EXPANSION = 8
_PAPERS_WINDOW = 10_000_000
"""Tokens. Source: Gao et al. 2024, A.2."""
_SHARE_OF_BUDGET = 8
_LEAST_FIRINGS = 100


def latents(n_latents: int | None, expansion: int | None, d_model: int) -> int:
    """Return the number of latents: as given, or expansion × d_model, by default 8 ×."""
    return n_latents or (expansion or _EXPANSION) * d_model


def dead_window(given: int | Literal["auto"], *, n_latents: int, k: int, max_tokens: int) -> int:
    """Return the window in tokens, as given or auto; where it is not below the budget, no latent is ever dead.

    auto: the paper's, no more than an eighth of the budget, no less than 100 · n_latents / k: in that a latent of a
    hundredth of the mean rate fires once. Source: numerics 3.
    """
    if given != "auto":
        return given
    return max(math.ceil(_LEAST_FIRINGS * n_latents / k), min(_PAPERS_WINDOW, max_tokens // _SHARE_OF_BUDGET))
