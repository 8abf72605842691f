"""The table of tuned lenses: those that jobs train, from their being queued on, and those brought in. Its author."""

from orchestrator.lenses.lens_rows import LensEntry, curve, entries, found_by_attempt, named, of_jobs
from orchestrator.lenses.registry import NewLens, add, check_name, fill, name_unnamed, remove, reserve, users

__all__ = [
    "LensEntry",
    "NewLens",
    "add",
    "check_name",
    "curve",
    "entries",
    "fill",
    "found_by_attempt",
    "name_unnamed",
    "named",
    "of_jobs",
    "remove",
    "reserve",
    "users",
]
