"""Servers that can be killed and started again on the same port with the same data, and the outages they had."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
from sqlalchemy import Engine, select

from orchestrator.database.engine import db_now, transaction
from orchestrator.errors import StorageError
from tests import servers

DURABLE = ("-c", "synchronous_commit=on")
"""The tests' PostgreSQL may forget what it has just acknowledged when it is killed: ours may not."""


MEMORY_ONLY = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
PROBE_SECONDS = 0.25


class Outage(NamedTuple):
    """When a database committed nothing, in epoch seconds."""

    since: float
    until: float


class Probe:
    """Commits an empty transaction again and again, and notes when that took long.

    A killed server is one reason; on SQLite a process that was frozen within its transaction is another, for it keeps
    the lock of the whole file.
    """

    def __init__(self, engine: Engine, *, patience: float) -> None:
        """Start; a commit that takes longer than `patience` seconds is an outage."""
        self.outages: list[Outage] = []
        self.engine, self._patience = engine, patience
        self._answered_at = time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self._thread.start()

    @property
    def answers_since(self) -> float:
        """Return since when the database has answered without a break; now, if it does not."""
        if time.time() - self._answered_at > self._patience:
            return time.time()
        return max((outage.until for outage in self.outages), default=0.0)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(PROBE_SECONDS):
            try:
                with transaction(self.engine) as session:
                    session.execute(select(db_now()))
            except StorageError:
                continue
            if time.time() - self._answered_at > self._patience:
                self.outages.append(Outage(self._answered_at, time.time()))
            self._answered_at = time.time()


class Server:
    """A child process of ours that listens on a port."""

    def __init__(self, name: str, url: str, answers: Callable[[int], bool], *, stop: signal.Signals) -> None:
        """Find the child that listens there. It must be ours: nobody else's server is killed."""
        self.name, self.url, self._stop, self._answers = name, url, stop, answers
        self._port = urlsplit(url).port or 0
        found = [child for child in psutil.Process().children() if str(self._port) in " ".join(child.cmdline())]
        if len(found) != 1:
            raise RuntimeError(f"the {name} at port {self._port} is not a child of this process")
        self._process: psutil.Process | psutil.Popen = found[0]
        # Redis writes a title over its arguments: only its port is known of it.
        arguments = [part for part in found[0].cmdline()[1:] if part] or ["--port", str(self._port), *MEMORY_ONLY]
        self._command, self._account = [found[0].exe(), *arguments], found[0].uids().real
        self._group = found[0].gids().real
        self._start_at: float | None = None
        self._killed_at, self._is_frozen = 0.0, False

    @property
    def is_away(self) -> bool:
        return self._start_at is not None

    def kill(self, *, seconds: float) -> None:
        """End it as a crash does; `restart_when_due` starts it again so many seconds later."""
        self._killed_at, self._start_at = time.time(), time.monotonic() + seconds
        self._process.send_signal(self._stop)
        self._process.wait(30)

    def freeze(self, *, seconds: float) -> None:
        """Let it take connections and answer nothing; `restart_when_due` lets it go on so many seconds later."""
        self._killed_at, self._start_at, self._is_frozen = time.time(), time.monotonic() + seconds, True
        self._signal_all(signal.SIGSTOP)

    def _signal_all(self, number: signal.Signals) -> None:
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def restart_when_due(self) -> Outage | None:
        """Start it when it is due; return the outage once it answers."""
        if self._start_at is None or time.monotonic() < self._start_at:
            return None
        if self._is_frozen:
            self._signal_all(signal.SIGCONT)
        else:
            self.start()
        self._start_at, self._is_frozen = None, False
        return Outage(self._killed_at, time.time())

    def start(self, *options: str) -> None:
        self._command += options
        self._process = psutil.Popen(
            self._command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, user=self._account, group=self._group, extra_groups=[],
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers(self._port):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the {self.name} did not come back")
            time.sleep(0.02)

    def close(self) -> None:
        if self._is_frozen:
            self._signal_all(signal.SIGCONT)
        if self._process.is_running():
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)


@contextmanager
def postgres(*options: str) -> Iterator[Server]:
    """Yield a PostgreSQL that keeps what it acknowledged when it is killed; `options` are added to its command."""
    with servers.postgres() as url:
        server = Server("postgres", url, servers._postgres_answers, stop=signal.SIGQUIT)
        try:
            server.close()
            server.start(*DURABLE, *options)
            yield server
        finally:
            server.close()


@contextmanager
def redis() -> Iterator[Server]:
    """Yield a Redis."""
    with servers.redis() as url:
        server = Server("redis", url, servers._redis_answers, stop=signal.SIGKILL)
        try:
            yield server
        finally:
            server.close()
