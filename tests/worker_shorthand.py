"""Short calls about workers for tests."""

import json
from typing import Any

import pytest
from sqlalchemy import Engine, update

from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import WorkerRow
from orchestrator.queue import Worker, workers
from orchestrator.settings import Settings


def report(engine: Engine, name: str, *, device: str = "cpu", elapsed: float | None = None) -> workers.Desired:
    """Let a worker report; its token is its name, `elapsed` the seconds since its last report."""
    worker = Worker(name=name, host="here", pid=1, device=device)
    return workers.report(engine, worker, token=name, version="0.1", every_seconds=10.0, elapsed=elapsed)


def silence(engine: Engine, token: str, seconds: float = 99.0) -> None:
    """Let the last report of a worker be so many seconds ago."""
    with transaction(engine) as session:
        session.execute(update(WorkerRow).where(WorkerRow.token == token).values(seen_at=db_now() - seconds))


def let_commands_reach(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `orch` use the database of a test."""
    monkeypatch.setenv("ORCH_HOME", str(settings.home))
    if settings.database_url:
        monkeypatch.setenv("ORCH_DATABASE_URL", settings.database_url)


def items(capture: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return what a command printed with `-o json`."""
    found: list[dict[str, Any]] = json.loads(capture.readouterr().out)["items"]
    return found
