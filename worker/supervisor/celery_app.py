"""The Celery application: it wakes the supervisor's loop, nothing more."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery import Celery
from celery.signals import setup_logging, worker_ready
from celery.worker import state

from orchestrator.dispatch import QUEUE_NAME, TASK_NAME, celery_settings
from orchestrator.masking import mask
from orchestrator.settings import Settings

JOIN_SECONDS = 10.0

app = Celery("orch")
_listeners: list[Callable[[], None]] = []


@app.task(name=TASK_NAME, ignore_result=True)  # type: ignore[untyped-decorator]
def wake(job_id: int | None = None) -> None:
    """Make the supervisor look at the queue. The job id is a hint for a log: the message carries no authority."""
    for listener in list(_listeners):
        listener()


@contextmanager
def listening(
    settings: Settings, wake: Callable[[], None], *, name: str, say: Callable[[str], None]
) -> Iterator[threading.Thread]:
    """Run a Celery worker in a thread of its own, which calls `wake` for every message.

    `wake` returns when nothing more can be claimed: with a concurrency of 1 and no prefetching a busy worker then takes
    no message from an idle one. The main thread keeps its signals and its loop; the broker may be away all day.
    """
    app.conf.update(celery_settings(settings))

    def ready(**_: object) -> None:
        say(f"wake-ups come from {mask(settings.broker_url)}")

    worker_ready.connect(ready, weak=False)
    setup_logging.connect(_leave_logging, weak=False)
    _listeners.append(wake)
    state.should_stop = state.should_terminate = None
    thread = threading.Thread(target=_serve, args=(name,), name="celery", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        state.should_stop = 0  # Celery's own word for a warm stop; its signal handlers live in the main thread alone
        thread.join(JOIN_SECONDS)
        _listeners.remove(wake)
        worker_ready.disconnect(ready)


def _leave_logging(**_: object) -> None:
    """Keep Celery, which sees this receiver, from putting handlers of its own in place of the worker's."""


def _serve(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # containers run as root; messages are JSON, never code
        worker = app.Worker(
            pool="threads", concurrency=1, hostname=f"{name}@%h", queues=QUEUE_NAME, loglevel="WARNING", quiet=True,
            without_gossip=True, without_mingle=True, redirect_stdouts=False,
        )  # fmt: skip
    worker.start()
