"""The most memory that a trainer held, beside what its jobs were expected to take."""

import resource
import sys
from collections.abc import Sequence

from orchestrator.config.job import JobConfig
from orchestrator.estimates.memory import PROGRAM_BYTES, trainer_bytes
from orchestrator.formatting import count, named

_MORE, _LESS = 1.1, 1 / 3
"""Of what was expected: from here on a trainer may run out of memory, or others could have had a place beside it."""


def peak_bytes(device: str) -> int:
    """Return the most bytes that this process held at once: of the GPU, with what its context takes, or resident."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device)) + PROGRAM_BYTES["cuda"]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def missed_by_much(configs: Sequence[JobConfig], device: str, peak: int) -> str | None:
    """Return a line for the log where what jobs took is far from `trainer_bytes` of them; None where it is near."""
    expected = trainer_bytes(configs, kind="cuda" if device.startswith("cuda") else "cpu")
    if _LESS * expected <= peak <= _MORE * expected:
        return None
    return (
        f"memory: at most {count(peak)}B were held on {device}, {count(expected)}B were expected of "
        f"{named(len(configs), 'job')}: ORCH_MEMORY and ORCH_JOBS_PER_TRAINER say what a trainer may take"
    )
