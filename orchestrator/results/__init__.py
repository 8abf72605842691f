"""The read side: flat rows of jobs, sweeps, workers, curves and histories."""

from orchestrator.results.attendance import roster
from orchestrator.results.history import attempts, checkpoints, config, convergence, curve, events
from orchestrator.results.lookup import existing, find
from orchestrator.results.measurements import measured
from orchestrator.results.overview import jobs
from orchestrator.results.shapes import (
    AttemptRow,
    CheckpointRow,
    ConvergenceRow,
    EventRow,
    JobRow,
    QueueStats,
    RosterRow,
    SweepRow,
    WorkerRow,
)
from orchestrator.results.sharing import Standing, standing
from orchestrator.results.statistics import stats
from orchestrator.results.totals import counts, paused_since, sweeps, workers

__all__ = [
    "AttemptRow",
    "CheckpointRow",
    "ConvergenceRow",
    "EventRow",
    "JobRow",
    "QueueStats",
    "RosterRow",
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
    "measured",
    "paused_since",
    "roster",
    "standing",
    "stats",
    "sweeps",
    "workers",
]
