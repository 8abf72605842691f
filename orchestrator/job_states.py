"""The states a job can be in, and the sets of them that are asked for; loads nothing, so that any module may ask."""

from typing import Literal

State = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]

STATES: tuple[State, ...] = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
OPEN: tuple[State, ...] = ("queued", "running", "paused")
"""An attempt may still follow, or is at work."""
TERMINAL: tuple[State, ...] = ("succeeded", "failed", "cancelled")
FREED: tuple[State, ...] = ("failed", "cancelled")
"""The job no longer holds its config's place in the sweep; `orch retry` queues it again."""
