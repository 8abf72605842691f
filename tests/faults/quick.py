"""`python -m tests.faults.quick`: a trainer that only counts, on the real line: it starts at once and forgets nothing.

ORCH_STEPS and ORCH_STEP_SECONDS say how long it takes, ORCH_YIELD_SECONDS how long a last checkpoint does; the last
step waits while the file ORCH_HOLD is there. A job of seed 13 is poison; one of seed 14 takes memory until somebody
ends it.
"""

import os
import signal
import sys
import time
from pathlib import Path

from orchestrator.checkpoint_ref import CheckpointRef
from orchestrator.curves.point import Point, point_of
from worker.channel import SupervisorChannel
from worker.protocol import Assignment, CurvePointMessage, Ended, Exit, Order, Started

TOKENS = 1024
POISON, GREEDY = 13, 14


def main() -> Exit:
    line = SupervisorChannel()
    order = line.order(Order.from_json)
    (job,) = order.jobs
    line.training_from({job.job_id: 0})
    misbehave(job.config.training.seed)
    begin = next((saved.tokens_seen // TOKENS for saved in job.resume if Path(saved.uri).is_dir()), 0)
    line.send(Started(begin * TOKENS, {"n_latents": 8, "d_model": 4}), job.job_id)
    saved_at = time.monotonic()
    end, hold = int(os.environ.get("ORCH_STEPS", "5")), Path(os.environ.get("ORCH_HOLD", ""))
    for step in range(begin + 1, end + 1):
        time.sleep(float(os.environ.get("ORCH_STEP_SECONDS", "0.05")))
        while step == end and hold.is_file() and not line.must_yield:
            time.sleep(0.02)
        point = point_of(dict.fromkeys(Point._fields[:-1], 1 / step) | {"tokens_seen": step * TOKENS})
        line.send(CurvePointMessage(point), job.job_id)
        line.alive(step * TOKENS, job.job_id)
        if line.must_yield:
            time.sleep(float(os.environ.get("ORCH_YIELD_SECONDS", "0")))
        if line.must_yield or time.monotonic() - saved_at >= order.checkpoint_seconds:
            save(line, job, step * TOKENS)
            saved_at = time.monotonic()
        if line.must_yield:
            return Exit.YIELDED
    line.send(Ended("max_tokens", end * TOKENS, 1.5, None, 1.0, 2.0, 3.0, 4.0), job.job_id)
    return Exit.DONE


def misbehave(seed: int) -> None:
    if seed == POISON:
        os.kill(os.getpid(), signal.SIGSEGV)
    taken = []
    while seed == GREEDY:
        taken.append(bytearray(os.urandom(1 << 20)) * 8)


def save(line: SupervisorChannel, job: Assignment, tokens: int) -> None:
    folder = Path(job.artifacts, str(tokens))
    folder.mkdir(parents=True, exist_ok=True)
    line.send(CheckpointRef(str(folder), tokens, "ab"), job.job_id)


if __name__ == "__main__":
    sys.exit(main())
