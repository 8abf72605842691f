"""`python -m tests.faults.gated`: the real trainer, whose writing of a checkpoint waits while ORCH_GATE is there."""

import os
import sys
import time
from pathlib import Path

from worker import checked_folder
from worker.trainer.__main__ import main


def wait_at_the_gate(path: Path) -> None:
    gate = Path(os.environ["ORCH_GATE"])
    while gate.exists():
        (gate.parent / "waiting").write_text(str(path))
        time.sleep(0.02)
    flush(path)


flush = checked_folder.flush

if __name__ == "__main__":
    checked_folder.flush = wait_at_the_gate
    status = main()
    sys.stderr.flush()
    os._exit(status)
