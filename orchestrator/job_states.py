"""The states a job can be in, what it can come to, and the sets that are asked for; any module may load it."""

from typing import Literal

State = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Outcome = Literal["converged", "max_tokens", "not_learning", "diverged"]

STATES: tuple[State, ...] = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
OPEN: tuple[State, ...] = ("queued", "running", "paused")
"""An attempt may still follow, or is at work."""
TERMINAL: tuple[State, ...] = ("succeeded", "failed", "cancelled")
JobKind = Literal["train", "evaluate", "lens"]
"""What a job does: train an SAE, measure metrics of one, or train a tuned lens."""
JOB_KINDS: tuple[JobKind, ...] = ("train", "evaluate", "lens")

OUTCOMES: tuple[Outcome, ...] = ("converged", "max_tokens", "not_learning", "diverged")
"""What training can come to; each is a result, and its job has succeeded in telling so."""
NO_LIMIT: tuple[Outcome, ...] = ("not_learning", "diverged")
"""Outcomes of a loss that never left what untrained weights score, or rose: such a curve tends to nothing."""
FREED: tuple[State, ...] = ("failed", "cancelled")
"""The job no longer holds its config's place in the sweep; `orch retry` queues it again."""
