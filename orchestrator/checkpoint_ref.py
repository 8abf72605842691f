"""Where a checkpoint lies: what a trainer reports, the queue stores, and the next attempt is handed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointRef:
    """A finished checkpoint on disk."""

    uri: str
    """Its folder."""
    tokens_seen: int
    """Training tokens at which it was taken."""
    sha256: str
    """Of its manifest, which holds the sha256 of every other file."""
