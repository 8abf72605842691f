"""`python -m tests.faults.gated`: the real trainer, whose writing of a checkpoint waits while ORCH_GATE is there."""

import os
import sys
import time
from pathlib import Path

from worker.trainer import __main__ as trainer
from worker.trainer import checkpoint


def wait_at_the_gate(path: Path) -> None:
    gate = Path(os.environ["ORCH_GATE"])
    while gate.exists():
        (gate.parent / "waiting").write_text(str(path))
        time.sleep(0.02)
    flush(path)


flush = checkpoint._flush

if __name__ == "__main__":
    checkpoint._flush = wait_at_the_gate
    status = trainer.main()
    sys.stderr.flush()
    os._exit(status)
