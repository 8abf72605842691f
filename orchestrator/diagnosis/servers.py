"""Check the database, its clock, the workers, the broker and the tracking store: is each within reach?"""

import os
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from orchestrator.diagnosis.finding import Finding
from orchestrator.errors import OrchError, StorageError
from orchestrator.formatting import duration, named
from orchestrator.job_states import JOB_KINDS
from orchestrator.masking import mask
from orchestrator.mlflow_store import fault
from orchestrator.settings import Settings, sqlite_file

if TYPE_CHECKING:
    from sqlalchemy import Engine

CLOCK_SECONDS, DAY_SECONDS = 5.0, 86_400.0
"""How far this machine's clock may be off without a warning; how long a step of the database's is told."""


def check_database(settings: Settings) -> Finding:
    """Look whether the database answers, and whether its schema is that of this version."""
    from orchestrator.database.schema import HEAD, current, other_schema

    try:
        found = current(settings)
        if found == HEAD:
            _try_to_write(settings)
    except OrchError as error:
        return Finding("FAIL", "database", error.message, error.hint)
    if found and found > HEAD:
        unknown = other_schema(settings, found)
        return Finding("FAIL", "database", unknown.message, unknown.hint)
    if found == HEAD:
        return Finding("OK", "database", f"{mask(settings.database)}, schema {found}{_holders(settings)}")
    text = f"{mask(settings.database)} has {f'schema {found}' if found else 'no schema yet'}, {HEAD} is needed"
    if settings.embedded:
        return Finding("OK", "database", text, "It is made when it is first used.")
    return Finding("FAIL", "database", text, "Run: orch db upgrade")


def _try_to_write(settings: Settings) -> None:
    """Take the locks of a write, as a worker does, and write nothing.

    Raises:
        StorageError: the database may only be read, is full, or is held by another process.
    """
    from sqlalchemy import false, update

    from orchestrator.database.engine import transaction
    from orchestrator.database.models import WorkerRow

    with _opened(settings) as engine, transaction(engine) as session:
        session.execute(update(WorkerRow).where(false()).values(pid=0))


def _holders(settings: Settings) -> str:
    """Say which other processes have SQLite's file open: one that is stopped may keep all others from writing."""
    if not settings.embedded:
        return ""
    import psutil

    file, found = str((settings.home / "orch.db").resolve()), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and any(opened.path == file for opened in process.open_files()):
                found.append(f"{process.pid}{' (stopped)' if process.status() == psutil.STATUS_STOPPED else ''}")
    return f", open in process {', '.join(found)}" if found else ""


def check_clock(settings: Settings) -> Finding:
    """Compare this machine's clock with the database's."""
    from sqlalchemy import select

    from orchestrator import results
    from orchestrator.database.engine import db_now, reading

    if not _is_current(settings):
        return _unknown("clock")
    with _opened(settings) as engine, reading(engine) as session:
        session.execute(select(1))  # the connection is made before the time is taken
        before = time.time()
        theirs = float(session.execute(select(db_now())).scalar_one())
        ahead = (before + time.time()) / 2 - theirs
        step = results.last_clock_step(engine, within=DAY_SECONDS)
    if step is not None:
        text = f"the database's clock was set {step['seconds']:+.0f} s within the last day, as {step['worker']} saw"
        hint = "A lease of that time ended by as much later or sooner: let NTP slew that clock, and never set it."
        return Finding("WARN", "clock", text, hint)
    if abs(ahead) <= CLOCK_SECONDS:
        return Finding("OK", "clock", f"within {max(abs(ahead), 0.001):.3f} s of the database's")
    text = f"{duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the database's clock"
    hint = "Leases follow the database's clock alone. Times in logs are off: let NTP set this clock."
    return Finding("WARN", "clock", text, hint)


def check_workers(settings: Settings) -> Finding:
    """Look which workers there are, and whether there is one where jobs wait."""
    from orchestrator import results

    if not _is_current(settings):
        return _unknown("workers")
    with _opened(settings) as engine:
        registered = results.registered_workers(engine)
        found = [worker.state for worker in registered]
        ill = [worker for worker in registered if worker.state == "unwell"]
        waiting = sum(results.counts(engine, kind=kind)["queued"] for kind in JOB_KINDS)
    there = ", ".join(f"{found.count(state)} {state}" for state in dict.fromkeys(found)) or "none"
    if ill:
        text = "; ".join(f"{worker.name} on {worker.host}: {worker.unwell}" for worker in ill)
        return Finding(
            "WARN", "workers", f"{there}; {text}", "It claims nothing until that is over, and looks again by itself."
        )
    if "lost" in found:
        hint = "Killed, or cut off from the database; their jobs go on elsewhere. Who: orch worker list"
        return Finding("WARN", "workers", there, f"{hint}. To forget them: orch gc --older-than 0s")
    if waiting and not found:
        return Finding("WARN", "workers", f"none, and {named(waiting, 'job')} queued", "Start one: orch worker")
    return Finding("OK", "workers", there, "" if found else "Start one: orch worker")


def check_broker(settings: Settings) -> Finding:
    """Look whether the broker answers at its configured URL."""
    if not settings.broker_url:
        return Finding("OK", "broker", f"none: workers look at the queue every {settings.poll:g} s")
    from redis import Redis
    from redis.exceptions import RedisError

    try:
        client = Redis.from_url(settings.broker_url, socket_connect_timeout=3, socket_timeout=3)
        with client:
            client.ping()
    except (RedisError, OSError, ValueError) as error:
        hint = f"Jobs flow all the same: workers look every {settings.poll:g} s. Is Redis up, and broker_url right?"
        return Finding("WARN", "broker", f"{mask(settings.broker_url)}: {mask(str(error))}", hint)
    return Finding("OK", "broker", f"{mask(settings.broker_url)} answers")


def check_tracking(settings: Settings) -> Finding:
    """Look whether MLflow's store can be reached: a server, or a file on this machine."""
    address = mask(settings.tracking)
    try:
        text = _reach_tracking(settings.tracking)
    except (OrchError, OSError, ValueError, HTTPException) as error:
        hint = "Training goes on without it; orch tracking sync makes up for it later. Is tracking_url right?"
        said = error.message if isinstance(error, OrchError) else mask(str(error))
        return Finding("WARN", "tracking", f"{address}: {said}", hint)
    return Finding("OK", "tracking", f"{address}{text}")


def _reach_tracking(url: str) -> str:
    if url.startswith(("http://", "https://")):
        urllib.request.urlopen(_health(url), timeout=5).close()
        return " answers"
    if url.startswith("postgres"):
        from orchestrator.database.engine import connect, reading

        engine = connect(url)
        with reading(engine) as session:
            session.connection()
        engine.dispose()
        return " answers"
    file = sqlite_file(url)
    if file is None:
        return " was not looked at"
    if not file.exists():
        return ", made when it is first used"
    wrong = fault(file)
    if wrong is not None:
        raise StorageError(f"{wrong}; a worker, or orch tracking sync, sets it aside and makes it anew")
    return ", shown by: orch ui"


def _health(url: str) -> urllib.request.Request:
    """Return the question whether a server is up; its name and password go into a header, as urllib wants them."""
    place = urlsplit(url)
    who, _, host = place.netloc.rpartition("@")
    asked = urllib.request.Request(f"{place._replace(netloc=host).geturl().rstrip('/')}/health")
    if who:
        asked.add_header("Authorization", f"Basic {b64encode(unquote(who).encode()).decode()}")
    return asked


@contextmanager
def _opened(settings: Settings) -> "Iterator[Engine]":
    from orchestrator.database.schema import open_database

    engine = open_database(settings)
    try:
        yield engine
    finally:
        engine.dispose()


def _is_current(settings: Settings) -> bool:
    """Say whether there are tables to ask: looking makes and upgrades nothing."""
    from orchestrator.database.schema import HEAD, current

    try:
        return current(settings) == HEAD
    except OrchError:
        return False


def _unknown(name: str) -> Finding:
    return Finding("OK", name, "not known without a database")
