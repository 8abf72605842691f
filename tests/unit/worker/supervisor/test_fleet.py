"""A worker of a fleet that cannot be started has died: it is tried again, and nobody else is ended for it."""

import errno
import subprocess
from typing import Any

import pytest

from worker.supervisor import fleet
from worker.supervisor.fleet import MOST_DEATHS, Slot, WorkerProcess


def refuse(*_: object, **__: object) -> Any:
    raise OSError(errno.EAGAIN, "Resource temporarily unavailable")


def test_a_start_that_fails_is_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    start = subprocess.Popen
    monkeypatch.setattr(fleet, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    worker = WorkerProcess(Slot("gpu0", "cuda:0"), ("sleep", "60"), said.append)
    assert not worker.is_over(stopping=False)
    assert said[0] == "worker gpu0 did not start: Resource temporarily unavailable; it starts again in 0 s"
    monkeypatch.setattr(subprocess, "Popen", start)
    assert not worker.is_over(stopping=False)
    assert len(said) == 2
    worker.kill()
    monkeypatch.setattr(subprocess, "Popen", refuse)
    for _ in range(MOST_DEATHS):
        worker.is_over(stopping=False)
    assert worker.is_over(stopping=False), "it is given up in the end"
    assert worker.status == 1
    assert "given up" in said[-1]
