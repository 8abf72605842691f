"""A process that says one thing to the queue, and meets its fate at the commit."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine

from orchestrator import queue
from orchestrator.database.engine import connect
from orchestrator.queue import Lease
from tests.conformance.fault_port import FATES, at_commits
from tests.evaluation_shorthand import evaluate, record, score
from tests.queue_shorthand import WORKER, enqueue, point, result

Verb = Callable[[Engine, Lease], object]
ROOT = Path(__file__).parents[2]
VERBS: dict[str, Verb] = {
    "claim": lambda engine, lease: queue.claim(engine, WORKER, token=lease.token, lease_seconds=60.0),
    "heartbeat": lambda engine, lease: queue.heartbeat(engine, lease, lease_seconds=60.0, tokens_seen=9),
    "record": lambda engine, lease: queue.record(engine, lease, [point(10)]),
    "finish": lambda engine, lease: queue.finish(engine, lease, result()),
    "measure": lambda engine, lease: record(engine, lease, "reconstruction", score("fvu"), score("l0")),
    "family fails": lambda engine, lease: queue.record_failed_family(engine, lease, "downstream", "no"),
    "finish evaluation": lambda engine, lease: queue.finish_evaluation(engine, lease, 1.0),
    "evaluate": lambda engine, _: evaluate(engine, 1),
    "enqueue": lambda engine, _: enqueue(engine, 50),
}


def dies(engine: Engine, verb: str, fate: str, lease: Lease) -> None:
    """Let another process say a verb, and see it die by SIGKILL at the commit as its fate has it."""
    url = engine.url.render_as_string(hide_password=False)
    words = [url, verb, fate, str(lease.job_id), str(lease.attempt), lease.token]
    command = [sys.executable, "-m", "tests.conformance.doomed", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def main() -> None:
    """Say the verb; this should not return."""
    url, verb, fate, job_id, attempt, token = sys.argv[1:]
    engine = connect(url)
    with at_commits(engine, FATES[fate]):
        VERBS[verb](engine, Lease(int(job_id), int(attempt), token))


if __name__ == "__main__":
    main()
