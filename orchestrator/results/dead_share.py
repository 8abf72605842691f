"""The share of dead latents, where it was measured: within the dead window of its start, a job cannot have any."""

from orchestrator.config.job import JobConfig
from orchestrator.config.validation import read_stored


def dead_window(config: JobConfig, d_model: int | None) -> int | None:
    """Return after how many silent training tokens a latent is dead; None where that depends on an unknown width.

    Units: tokens. Source: numerics 3.
    """
    is_known = config.training.dead_after_tokens != "auto" or config.sae.n_latents is not None or d_model is not None
    return config.dead_after_tokens(d_model or 0) if is_known else None


def can_measure(config: JobConfig, d_model: int | None) -> bool:
    """Say whether a latent can be dead, and AuxK act, before the budget is spent; True where the window is unknown."""
    window = dead_window(config, d_model)
    return window is None or config.training.max_tokens > window


def measured_share(share: float | None, tokens_seen: int | None, window: int | None) -> float | None:
    """Return the share of dead latents at a point of a curve; None where the window had not passed.

    `tokens_seen`, `window`: in tokens. A share above 0 has been measured, whatever the window is taken to be.
    """
    if share or share is None or window is None:
        return share
    return share if (tokens_seen or 0) > window else None


def stored_window(config: str, config_id: str, d_model: int | None) -> int | None:
    """Return the dead window of a stored config."""
    return dead_window(read_stored(config, config_id), d_model)
