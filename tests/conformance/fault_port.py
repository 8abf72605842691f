"""The port between the queue and its database: what can befall a commit, chosen commit by commit."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import OperationalError

from orchestrator.database.engine import connect

Fate = Callable[[Connection], None]
"""Called instead of a commit's start; when it returns, the commit takes place."""
T = TypeVar("T")
PATIENCE_SECONDS = 60.0


def goes_well(_: Connection) -> None:
    """Let the commit take place, and its answer arrive."""


def fails(_: Connection) -> None:
    """Let the connection break before the commit: nothing is stored."""
    raise _broken()


def loses_its_answer(connection: Connection) -> None:
    """Let the connection break after the commit: all is stored, and the caller cannot know."""
    connection.connection.commit()
    raise _broken()


def kills_before(_: Connection) -> None:
    """Let the process die by SIGKILL when all is written and nothing committed."""
    os.kill(os.getpid(), signal.SIGKILL)


def kills_after(connection: Connection) -> None:
    """Let the process die by SIGKILL when the commit is done, before it knows."""
    connection.connection.commit()
    os.kill(os.getpid(), signal.SIGKILL)


FATES: dict[str, Fate] = {
    "goes well": goes_well,
    "fails": fails,
    "loses its answer": loses_its_answer,
    "kills before": kills_before,
    "kills after": kills_after,
}


@contextmanager
def at_commits(engine: Engine, *fates: Fate) -> Iterator[None]:
    """Let the next commits of an engine meet these fates, one each; later ones go well."""
    coming = iter(fates)

    def meet(connection: Connection) -> None:
        next(coming, goes_well)(connection)

    event.listen(engine, "commit", meet)
    try:
        yield
    finally:
        event.remove(engine, "commit", meet)


@contextmanager
def another(engine: Engine) -> Iterator[Engine]:
    """Open the same database once more, as another process would."""
    other = connect(engine.url.render_as_string(hide_password=False))
    try:
        yield other
    finally:
        other.dispose()


@contextmanager
def frozen_at_commit(engine: Engine, verb: Callable[[Engine], T]) -> Iterator[Callable[[], T]]:
    """Let a verb stand still just before its commit, all its locks held; calling what is yielded lets it go on."""
    reached, go = threading.Event(), threading.Event()

    def stand_still(_: Connection) -> None:
        reached.set()
        go.wait(PATIENCE_SECONDS)

    with another(engine) as other, ThreadPoolExecutor(1) as pool, at_commits(other, stand_still):
        future: Future[T] = pool.submit(verb, other)

        def go_on() -> T:
            go.set()
            return future.result(PATIENCE_SECONDS)

        try:
            assert reached.wait(PATIENCE_SECONDS), future.exception(0)
            yield go_on
        finally:
            go.set()


def at_once(*calls: Callable[[], T]) -> list[T]:
    """Call all of these at the same instant, each in a thread of its own; return what they answered."""
    gate = threading.Barrier(len(calls))

    def go(call: Callable[[], T]) -> T:
        gate.wait(PATIENCE_SECONDS)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(go, calls))


def _broken() -> OperationalError:
    return OperationalError("COMMIT", {}, ConnectionError("server closed the connection unexpectedly"))
