"""`python -m worker` with the light trainer and evaluation instead of the real ones; all else is unchanged.

MLflow is left out: it would take more than all the rest, and the database is computed without it.
"""

import os
import sys
from typing import Any

from worker import __main__ as worker
from worker.supervisor import health, trainer_process
from worker.tracking import shipper

PAUSE_SECONDS = "ORCH_SOAK_PAUSE_SECONDS"
"""How soon a machine that is unwell is looked at again: shorter, as leases are."""


def _no_store(*_: Any) -> None:
    raise OSError("a soak keeps no MLflow store")


if __name__ == "__main__":
    trainer_process.COMMAND = (sys.executable, "-P", "-m", "benchmarks.light_trainer")
    trainer_process.EVALUATION_COMMAND = (sys.executable, "-P", "-m", "benchmarks.light_evaluation")
    if pause := os.environ.get(PAUSE_SECONDS):
        health.FIRST_PAUSE_SECONDS, health.LONGEST_PAUSE_SECONDS = float(pause), 4 * float(pause)
    shipper.Projection = _no_store  # type: ignore[assignment,attr-defined]
    sys.exit(worker.main())
