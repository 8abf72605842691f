"""`python -m worker`, which `orch worker` runs: claim and train, by polling and, with a broker, by wake-ups."""

import argparse
import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from types import FrameType
from typing import Any

from orchestrator.errors import OrchError, StorageError
from orchestrator.settings import Settings, load, mask

DRAIN_SECONDS, STOPPED_DRAIN_SECONDS = 60.0, 5.0
"""For how long the end of a worker waits for MLflow: when the queue is empty, and when it is told to stop."""

INTERRUPTED = 130
"""Exit status of a worker that was to empty the queue and was stopped before."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker, or bring MLflow up to date; return the exit status."""
    for package in ("mlflow", "celery", "sqlalchemy"):  # advice to their authors, and that a container runs as root
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
    asked = _parser().parse_args(arguments)
    try:
        settings = load()
        return _sync(settings, asked.sweep) if asked.verb == "sync" else _work(settings, asked)
    except OrchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _work(settings: Settings, asked: argparse.Namespace) -> int:
    from orchestrator.database.schema import open_database
    from worker.device import check
    from worker.tasks import Supervisor, this_worker
    from worker.tracking import Tracking

    device = asked.device or settings.device
    check(device)
    engine = open_database(settings)
    me = this_worker(asked.name, pid=os.getpid(), device=device)
    tracking = Tracking(engine, settings, say=say)
    supervisor = Supervisor(settings, engine, worker=me, threads=asked.threads, say=say, changed=tracking.changed)
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        # SIGTERM comes again from impatient service managers: only a second Ctrl-C means "now".
        if not received or number == signal.SIGINT:
            supervisor.stop()
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    with _doorbell(settings, supervisor.ring, me.name):
        say(f"worker {me.name} on {device}, {asked.threads} threads, database {engine.url.render_as_string()}")
        supervisor.run(until_empty=asked.until_empty)
    tracking.close(STOPPED_DRAIN_SECONDS if received else DRAIN_SECONDS)
    engine.dispose()
    say(f"worker {me.name} ends")
    return INTERRUPTED if received and asked.until_empty else 0


def _doorbell(settings: Settings, ring: Any, name: str) -> Any:
    if not settings.broker_url:
        return nullcontext()
    from worker.app import listening

    return listening(settings, ring, name=name, say=say)


def _sync(settings: Settings, sweep: str) -> int:
    from mlflow.exceptions import MlflowException

    from orchestrator.database.schema import open_database
    from worker.tracking import sync

    engine = open_database(settings)
    try:
        done = sync(engine, settings, sweep)
    except (OSError, MlflowException) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StorageError(
            f"MLflow at {mask(settings.tracking)} does not answer: {first[:200]}", hint="Is it up? orch doctor"
        ) from None
    say(f"MLflow at {mask(settings.tracking)}: {done} jobs of {sweep} are up to date")
    return 0


def say(text: str) -> None:
    """Print one event on a line of its own."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orch worker", description="Claim jobs and train them.")
    parser.add_argument("--until-empty", action="store_true", help="end when no job is queued or running")
    parser.add_argument("--name", help="this worker's name in `orch status` (default: host and process id)")
    parser.add_argument("--threads", type=_threads, default=_cores(), help="CPU threads of the trainer (default: all)")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: the setting `device`)")
    verbs = parser.add_subparsers(dest="verb")
    verbs.add_parser("sync", help="rebuild in MLflow what is missing of a sweep").add_argument("sweep")
    return parser


def _threads(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return count


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
