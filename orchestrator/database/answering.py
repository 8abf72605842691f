"""PostgreSQL connections whose every wait ends by our own clock: a server may take what is sent and never answer."""

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Engine, event

Value = TypeVar("Value")


class Patience:
    """For how long to wait for an answer of a server."""

    seconds = 15.0
    """Above the time that a session's own limits give a statement."""
    seconds_without_limits = 3600.0
    """Of a migration, or of a copy."""
    seconds_when_stopped = 3.0


class AnsweringConnection(psycopg.Connection[Any]):
    """A connection that is closed when the server does not answer in time."""

    has_limits = True

    def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
        """Wait for the end of an exchange with the server, with an end of our own.

        Raises:
            OperationalError: there was no answer in time.
        """
        return super().wait(self._ending(gen), *arguments, **named)

    def _ending(self, gen: Generator[Any, Any, Value]) -> Generator[Any, Any, Value]:
        """Pass an exchange through; it is resumed every tenth of a second while nothing comes."""
        heard_at, ready = time.monotonic(), None
        while True:
            try:
                state = gen.send(ready)
            except StopIteration as end:
                value: Value = end.value
                return value
            ready = yield state
            if ready:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > self._patience:
                self.pgconn.finish()
                raise psycopg.OperationalError(f"the server has not answered for {self._patience:g} s")

    @property
    def _patience(self) -> float:
        return Patience.seconds if self.has_limits else Patience.seconds_without_limits


class UnlimitedConnection(AnsweringConnection):
    """A connection for what may take long."""

    has_limits = False


def make_answering(engine: Engine, *, limits: bool) -> None:
    """Let an engine make such connections."""
    kind = AnsweringConnection if limits else UnlimitedConnection

    def made(_dialect: Any, _record: Any, arguments: Any, named: Any) -> Any:
        return kind.connect(*arguments, **named)

    event.listen(engine, "do_connect", made)


def be_brief() -> None:
    """Wait for no server much longer: this process was told to stop. Fit for signal handlers."""
    Patience.seconds = Patience.seconds_when_stopped
