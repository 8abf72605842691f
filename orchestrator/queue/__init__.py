"""The only code that changes a job's state. Each verb is one short transaction; every write of a worker is fenced.

Start at `submission`, `claims`, `heartbeats`, `outcomes`, and `control`; `eligibility` says which jobs may run.
"""

from typing import TYPE_CHECKING

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.job_states import State
from orchestrator.loading.lazy_names import lazy_names

if TYPE_CHECKING:
    from orchestrator.queue.analysis import Reanalysed, reanalyse
    from orchestrator.queue.claims import claim, claim_companion, waiting
    from orchestrator.queue.control import cancel, pause, pause_sweep, reprioritise, resume, resume_sweep, retry
    from orchestrator.queue.evaluation_jobs import Asked, evaluate
    from orchestrator.queue.evaluations import begin_evaluation, finish_evaluation, record_failed_family, record_scores
    from orchestrator.queue.expiry import release_expired
    from orchestrator.queue.extension import extend
    from orchestrator.queue.heartbeats import begin, checkpointed, heartbeat, record, set_mlflow
    from orchestrator.queue.lens import LensAsked, finish_lens, train_lens
    from orchestrator.queue.outcomes import crashed_in_company, fail, fail_alike, finish, hand_back, release
    from orchestrator.queue.queue_pause import is_done, pause_queue, resume_queue
    from orchestrator.queue.removal import delete_jobs, hide_jobs, remove_sae
    from orchestrator.queue.submission import enqueue
    from orchestrator.queue.types import (
        Change,
        Claim,
        Desired,
        Enqueued,
        Lease,
        LeaseLost,
        Result,
        Worker,
    )

__all__ = [
    "Asked",
    "Change",
    "CheckpointRef",
    "Claim",
    "Desired",
    "Enqueued",
    "Lease",
    "LeaseLost",
    "LensAsked",
    "Reanalysed",
    "Result",
    "State",
    "Worker",
    "begin",
    "begin_evaluation",
    "cancel",
    "checkpointed",
    "claim",
    "claim_companion",
    "crashed_in_company",
    "delete_jobs",
    "enqueue",
    "evaluate",
    "extend",
    "fail",
    "fail_alike",
    "finish",
    "finish_evaluation",
    "finish_lens",
    "hand_back",
    "heartbeat",
    "hide_jobs",
    "is_done",
    "pause",
    "pause_queue",
    "pause_sweep",
    "reanalyse",
    "record",
    "record_failed_family",
    "record_scores",
    "release",
    "release_expired",
    "remove_sae",
    "reprioritise",
    "resume",
    "resume_queue",
    "resume_sweep",
    "retry",
    "set_mlflow",
    "train_lens",
    "waiting",
]

__getattr__ = lazy_names(
    __name__,
    {
        "analysis": ("Reanalysed", "reanalyse"),
        "claims": ("claim", "claim_companion", "waiting"),
        "control": ("cancel", "pause", "pause_sweep", "reprioritise", "resume", "resume_sweep", "retry"),
        "evaluation_jobs": ("Asked", "evaluate"),
        "evaluations": ("begin_evaluation", "finish_evaluation", "record_failed_family", "record_scores"),
        "expiry": ("release_expired",),
        "extension": ("extend",),
        "heartbeats": ("begin", "checkpointed", "heartbeat", "record", "set_mlflow"),
        "lens": ("LensAsked", "finish_lens", "train_lens"),
        "outcomes": ("crashed_in_company", "fail", "fail_alike", "finish", "hand_back", "release"),
        "queue_pause": ("is_done", "pause_queue", "resume_queue"),
        "removal": ("delete_jobs", "hide_jobs", "remove_sae"),
        "submission": ("enqueue",),
        "types": ("Change", "Claim", "Desired", "Enqueued", "Lease", "LeaseLost", "Result", "Worker"),
    },
)
