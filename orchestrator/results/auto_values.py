"""What `auto` came to: the learning rate, and the window before whose end no latent can be dead or counted as dead."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, func, select

from orchestrator.config import sizes
from orchestrator.database.models import Attempt, Job

if TYPE_CHECKING:  # `orch status` reads what is stored without it
    from orchestrator.config.job import JobConfig


def dead_window(config: "JobConfig", d_model: int | None) -> int | None:
    """Return after how many silent training tokens a latent is dead; None where that depends on an unknown width.

    Units: tokens. Source: numerics 3.
    """
    if config.training.dead_after_tokens != "auto":
        return config.training.dead_after_tokens
    is_known = d_model is not None or config.sae.n_latents is not None
    return config.dead_after_tokens(d_model or 0) if is_known else None


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
    return window_of(json.loads(config), d_model)


def window_of(config: dict[str, Any], d_model: int | None) -> int | None:
    """Return the dead window of a config as JSON has it."""
    given, sae, max_tokens = config["training"]["dead_after_tokens"], config["sae"], config["training"]["max_tokens"]
    n_latents = sizes.latents(sae["n_latents"], sae["expansion"], d_model or 0)
    if given == "auto" and not n_latents:
        return None
    return sizes.dead_window(given, n_latents=n_latents, k=sae["k"], max_tokens=max_tokens)


def trained_lr() -> ColumnElement[float | None]:
    """Return the expression on a job for its learning rate; NULL where it is auto and no attempt has begun.

    Facts come first: a worker of an earlier version may have written the rate of an earlier attempt over the column.
    """
    resolved = Attempt.facts["lr"].as_float()
    newest = select(resolved).where(Attempt.job_id == Job.id, resolved.is_not(None)).order_by(Attempt.attempt.desc())
    return func.coalesce(newest.limit(1).correlate(Job).scalar_subquery(), Job.lr)


def lr_of(asked: float | None, facts: Mapping[str, Any]) -> float | None:
    """Return the same from a job's row and its newest attempt's facts, every bit of it."""
    resolved: float | None = facts.get("lr")
    return asked if resolved is None else resolved
