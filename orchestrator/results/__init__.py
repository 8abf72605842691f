"""The read side: flat rows of jobs, sweeps, workers, curves and histories."""

from orchestrator.results.history import attempts, checkpoints, config, convergence, curve, events
from orchestrator.results.lookup import existing, find
from orchestrator.results.overview import jobs
from orchestrator.results.shapes import (
    AttemptRow,
    CheckpointRow,
    ConvergenceRow,
    EventRow,
    JobRow,
    SweepRow,
    WorkerRow,
)
from orchestrator.results.sharing import Standing, standing
from orchestrator.results.totals import counts, sweeps, workers

__all__ = [
    "AttemptRow",
    "CheckpointRow",
    "ConvergenceRow",
    "EventRow",
    "JobRow",
    "Standing",
    "SweepRow",
    "WorkerRow",
    "attempts",
    "checkpoints",
    "config",
    "convergence",
    "counts",
    "curve",
    "events",
    "existing",
    "find",
    "jobs",
    "standing",
    "sweeps",
    "workers",
]
