"""The read side: flat rows of jobs, sweeps, workers, curves and histories."""

from typing import TYPE_CHECKING

from orchestrator.loading.lazy_names import lazy_names

if TYPE_CHECKING:
    from orchestrator.results.auto_values import can_measure, dead_window
    from orchestrator.results.fit_rows import measured
    from orchestrator.results.job_history import attempts, checkpoints, config, convergence, curve, curves, events
    from orchestrator.results.job_rows import jobs, located, waiting_for
    from orchestrator.results.measured_speed import MeasuredSpeed, expected_seconds
    from orchestrator.results.queue_position import QueuePosition, position_in_queue
    from orchestrator.results.queue_stats import counts, paused_since, stats, sweeps, workers
    from orchestrator.results.rows import (
        AttemptRow,
        CheckpointRow,
        ConvergenceRow,
        EventRow,
        JobRow,
        QueueStats,
        RegisteredWorker,
        SweepRow,
        WorkerRow,
        flat_jobs,
    )
    from orchestrator.results.selectors import existing, find, find_saes, hidden_of, left_out
    from orchestrator.results.text_passes import text_sizes
    from orchestrator.results.worker_rows import last_clock_step, registered_workers

__all__ = [
    "AttemptRow",
    "CheckpointRow",
    "ConvergenceRow",
    "EventRow",
    "JobRow",
    "MeasuredSpeed",
    "QueuePosition",
    "QueueStats",
    "RegisteredWorker",
    "SweepRow",
    "WorkerRow",
    "attempts",
    "can_measure",
    "checkpoints",
    "config",
    "convergence",
    "counts",
    "curve",
    "curves",
    "dead_window",
    "events",
    "existing",
    "expected_seconds",
    "find",
    "find_saes",
    "flat_jobs",
    "hidden_of",
    "jobs",
    "last_clock_step",
    "left_out",
    "located",
    "measured",
    "paused_since",
    "position_in_queue",
    "registered_workers",
    "stats",
    "sweeps",
    "text_sizes",
    "waiting_for",
    "workers",
]

__getattr__ = lazy_names(
    __name__,
    {
        "auto_values": ("can_measure", "dead_window"),
        "fit_rows": ("measured",),
        "job_history": ("attempts", "checkpoints", "config", "convergence", "curve", "curves", "events"),
        "job_rows": ("jobs", "located", "waiting_for"),
        "measured_speed": ("MeasuredSpeed", "expected_seconds"),
        "queue_position": ("QueuePosition", "position_in_queue"),
        "queue_stats": ("counts", "paused_since", "stats", "sweeps", "workers"),
        "rows": (
            "AttemptRow",
            "CheckpointRow",
            "ConvergenceRow",
            "EventRow",
            "JobRow",
            "QueueStats",
            "RegisteredWorker",
            "SweepRow",
            "WorkerRow",
            "flat_jobs",
        ),
        "selectors": ("existing", "find", "find_saes", "hidden_of", "left_out"),
        "text_passes": ("text_sizes",),
        "worker_rows": ("last_clock_step", "registered_workers"),
    },
)
