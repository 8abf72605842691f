"""A worker's line in the roster: that it lives, and what a person wants of it."""

import uuid
from contextlib import suppress

from sqlalchemy import Engine

from orchestrator.errors import StorageError
from orchestrator.origin import versions
from orchestrator.queue import Worker, roster


class Presence:
    """One life of a worker in the roster. Nothing of it stops a worker: the roster is for people."""

    def __init__(self, engine: Engine, worker: Worker, *, every_seconds: float) -> None:
        """Prepare; the first report registers it."""
        self._engine, self._worker, self._every = engine, worker, every_seconds
        self._token, self._version = uuid.uuid4().hex, versions().get("orch", "unknown")

    def report(self) -> roster.Wish:
        """Say that it lives, and return what a person wants of it.

        Raises:
            StorageError: the database did not answer.
        """
        return roster.report(
            self._engine, self._worker, token=self._token, version=self._version, every_seconds=self._every
        )

    def end(self) -> None:
        """Note its end, if the database answers."""
        with suppress(StorageError):
            roster.sign_off(self._engine, self._token)
