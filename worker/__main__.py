"""`python -m worker`, which `orch worker` runs: claim and train, by polling and, with a broker, by wake-ups."""

import argparse
import gc
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from orchestrator.cores import usable_cores
from orchestrator.errors import MachineError, OrchError, StorageError
from orchestrator.formatting import named
from orchestrator.loading.rare_collections import OBJECTS
from orchestrator.masking import mask
from orchestrator.settings import Settings, load
from worker import log_stream
from worker.supervisor.log import Libraries, LogLine, WorkerLog

if TYPE_CHECKING:
    from worker.supervisor.supervisor import Supervisor

DRAIN_SECONDS, STOPPED_DRAIN_SECONDS = 60.0, 5.0
"""For how long the end of a worker waits for MLflow: when the queue is empty, and when it is told to stop."""

INTERRUPTED = 130
"""Exit status of a worker that was to empty the queue and was stopped before."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker, or bring MLflow up to date; return the exit status."""
    for package in ("mlflow", "celery", "sqlalchemy"):  # advice to their authors, and that a container runs as root
        warnings.filterwarnings("ignore", module=rf"{package}(\.|$)")
    asked = _parser().parse_args(arguments)
    gc.set_threshold(OBJECTS)  # what a worker loads, or what is read to be sent to MLflow, is kept to the end
    complain: Callable[[str], None] = _complain
    try:
        settings = load()
        if settings.log_format == "json":
            complain = WorkerLog(worker=asked.name or "", form="json")
        if asked.verb == "sync":
            return _sync(settings, asked.sweep, jobs=not asked.fits)
        return _work_on_all(settings, asked, arguments) if asked.devices is not None else _work(settings, asked)
    except OrchError as error:
        complain(LogLine(str(error), level="error"))
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _complain(text: str) -> None:
    print(f"Error: {text}", file=sys.stderr)


def _work_on_all(settings: Settings, asked: argparse.Namespace, arguments: Sequence[str] | None) -> int:
    """Run one worker process per device."""
    from orchestrator.database.schema import open_database
    from worker.devices import check, expand
    from worker.supervisor.fleet import Fleet

    devices = expand(asked.devices)
    check(*devices)
    open_database(settings).dispose()  # made or refused once, not by every worker at the same time
    threads = asked.threads or max(1, usable_cores() // len(devices))
    name = asked.name or f"{socket.gethostname()}-{os.getpid()}"
    fleet = Fleet(devices, WorkerLog(worker=name, form=settings.log_format))
    return fleet.run(name=name, threads=threads, flags=_flags_for_each(arguments))


def _flags_for_each(arguments: Sequence[str] | None) -> list[str]:
    """Return the flags that every worker of several gets as they are."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--devices", "--name", "--threads"):
        own.add_argument(flag)
    return own.parse_known_args(arguments)[1]


def _work(settings: Settings, asked: argparse.Namespace) -> int:
    """Run one worker in this process."""
    from orchestrator.database.schema import make_folder, open_database
    from orchestrator.diagnosis.checks import check_for_worker
    from orchestrator.queue import workers
    from worker.devices import check
    from worker.supervisor import gpu_lock
    from worker.supervisor.fleet import end_with_fleet
    from worker.supervisor.supervisor import Supervisor, this_worker
    from worker.tracking.shipper import Tracking

    if asked.label:
        threading.Thread(target=end_with_fleet, name="fleet-watch", daemon=True).start()
    device = asked.device or settings.device
    check(device)
    settings = _with_jobs_per_trainer(settings, asked.jobs, device)
    make_folder(settings.home)
    engine = open_database(settings)
    if (found := check_for_worker(settings)) is not None:
        raise MachineError(f"{found.name}: {found.text}", hint=f"{found.hint} No job is claimed here before.".lstrip())
    wanted = this_worker(asked.name, pid=os.getpid(), device=device)
    me = replace(wanted, name=workers.free_name(engine, wanted.name, is_new=not asked.name))
    say = WorkerLog(asked.label, worker=me.name, form=settings.log_format)
    if me.name != wanted.name:
        say(f"another worker named {wanted.name} {'is at work' if asked.name else 'was here'}: this one is {me.name}")
    Libraries(say).install()
    tracking = Tracking(engine, settings, say=say)
    supervisor = Supervisor(settings, engine, worker=me, threads=asked.threads, say=say, changed=tracking.changed)
    _stop_on_signals(supervisor)
    gpus = gpu_lock.held(gpu_lock.names(device, os.environ), gpu_lock.folder())
    with gpus, _wake_ups(settings, supervisor.wake, me.name, say):
        threads = named(asked.threads, "thread") if asked.threads else f"up to {named(usable_cores(), 'thread')}"
        say(f"worker {me.name} on {device}, {threads}, database {mask(settings.database)}")
        stopped = supervisor.run(until_empty=asked.until_empty)
    tracking.close(STOPPED_DRAIN_SECONDS if stopped else DRAIN_SECONDS)
    engine.dispose()
    if supervisor.database_gone:
        hint = "What its jobs had reached is in their checkpoints: bring a copy of the database back, and go on."
        raise StorageError(f"the database is gone: {supervisor.database_gone}", hint=hint)
    say(f"worker {me.name} ends")
    return INTERRUPTED if stopped and asked.until_empty else 0


def _with_jobs_per_trainer(settings: Settings, jobs: int | None, device: str) -> Settings:
    if "+" in device:  # devices that share each job take one at a time
        return replace(settings, jobs_per_trainer=1)
    return replace(settings, jobs_per_trainer=jobs) if jobs else settings


def _stop_on_signals(supervisor: "Supervisor") -> None:
    received: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if "orchestrator.database.answering" in sys.modules:  # it is loaded for PostgreSQL alone
            sys.modules["orchestrator.database.answering"].be_brief()
        # SIGTERM comes again from impatient service managers: only a second Ctrl-C means "now".
        if not supervisor.is_stopping or (received and number == signal.SIGINT):
            supervisor.stop()
        received.append(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)


def _wake_ups(settings: Settings, wake: Callable[[], None], name: str, say: Callable[[str], None]) -> Any:
    """Return a context in which the broker's messages, where there is a broker, call `wake`."""
    if not settings.broker_url:
        return nullcontext()
    from worker.supervisor.celery_app import listening

    return listening(settings, wake, name=name, say=say)


def _sync(settings: Settings, sweep: str, *, jobs: bool) -> int:
    from mlflow.exceptions import MlflowException

    from orchestrator.database.schema import open_database
    from worker.tracking.shipper import sync

    say = WorkerLog(form=settings.log_format)
    Libraries(say).install()
    engine = open_database(settings)
    try:
        done = sync(engine, settings, sweep, jobs=jobs)
    except (OSError, MlflowException) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StorageError(
            f"MLflow at {mask(settings.tracking)} does not answer: {mask(first)[:200]}", hint="Is it up? orch doctor"
        ) from None
    say(f"MLflow at {mask(settings.tracking)}: up to date with {named(done, 'job' if jobs else 'fit')} of {sweep}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orch worker", description="Claim jobs and train them.", allow_abbrev=False)
    parser.add_argument("--until-empty", action="store_true", help="end when no job is queued or running")
    parser.add_argument("--name", help="this worker's name in `orch status` (default: host and process id)")
    parser.add_argument("--jobs", type=_at_least_one, help="most jobs of one stream that a trainer trains together")
    parser.add_argument(
        "--threads",
        type=_at_least_one,
        help="CPU threads of a trainer (default: its part of the cores)",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: the setting `device`)")
    place.add_argument("--devices", help="a worker per entry: 0,1 or all GPUs: all; 0+1: one whose jobs share both")
    parser.add_argument("--label", default="", help=argparse.SUPPRESS)  # given by the fleet to each of its workers
    verbs = parser.add_subparsers(dest="verb")
    syncing = verbs.add_parser("sync", help="rebuild in MLflow what is missing of a sweep")
    syncing.add_argument("sweep")
    syncing.add_argument("--fits", action="store_true", help="its fits alone")
    return parser


def _at_least_one(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return count


if __name__ == "__main__":
    log_stream.install()
    code = main()
    gc.freeze()  # looking for garbage at the end, in all of MLflow too, took 0.7 s
    sys.exit(code)
