"""The share of dead latents, where it was measured: within the dead window of its start, a job cannot have any."""

import json
from typing import TYPE_CHECKING, Any

from orchestrator.config import sizes

if TYPE_CHECKING:  # `orch status` reads what is stored without it
    from orchestrator.config.job import JobConfig


def dead_window(config: "JobConfig", d_model: int | None) -> int | None:
    """Return after how many silent training tokens a latent is dead; None where that depends on an unknown width.

    Units: tokens. Source: numerics 3.
    """
    return _window(config.model_dump(), d_model)


def can_measure(config: "JobConfig", d_model: int | None) -> bool:
    """Say whether a latent can be dead, and AuxK act, before the budget is spent; True where the window is unknown."""
    found = dead_window(config, d_model)
    return found is None or config.training.max_tokens > found


def measured_share(share: float | None, tokens_seen: int | None, window: int | None) -> float | None:
    """Return the share of dead latents at a point of a curve; None where the window had not passed.

    `tokens_seen`, `window`: in tokens. A share above 0 has been measured, whatever the window is taken to be.
    """
    if share or share is None or window is None:
        return share
    return share if (tokens_seen or 0) > window else None


def stored_window(config: str, d_model: int | None) -> int | None:
    """Return the dead window of a stored config, given as its text."""
    return _window(json.loads(config), d_model)


def _window(config: dict[str, Any], d_model: int | None) -> int | None:
    given, sae, max_tokens = config["training"]["dead_after_tokens"], config["sae"], config["training"]["max_tokens"]
    n_latents = sizes.latents(sae["n_latents"], sae["expansion"], d_model or 0)
    if given == "auto" and not n_latents:
        return None
    return sizes.dead_window(given, n_latents=n_latents, k=sae["k"], max_tokens=max_tokens)
