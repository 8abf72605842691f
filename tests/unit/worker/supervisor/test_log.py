"""What a worker says, for people and for programs."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from worker.supervisor.log import Libraries, LogLine, WorkerLog

Capture = pytest.CaptureFixture[str]


def said(capture: Capture) -> dict[str, Any]:
    (line,) = capture.readouterr().err.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_remark_is_the_line_it_was() -> None:
    remark = LogLine("released", prefix="job 3 attempt 2: ", level="warning", job=3, attempt=2)
    assert remark == "job 3 attempt 2: released"
    assert (remark.message, remark.level, remark.about) == ("released", "warning", {"job": 3, "attempt": 2})
    assert LogLine.of(remark) is remark
    assert LogLine.of("plain").about == {}


def test_text_for_people(capsys: Capture) -> None:
    WorkerLog("gpu0", worker="w")(LogLine("released", prefix="job 3: ", job=3))
    assert re.fullmatch(r"\d\d:\d\d:\d\d  \[gpu0\] job 3: released\n", capsys.readouterr().err)


def test_an_object_for_programs(capsys: Capture) -> None:
    speak = WorkerLog("gpu0", worker="w-gpu0", form="json")
    speak(LogLine('it said "no"\nand left, größe', prefix="job 3: ", level="error", job=3, attempt=1, token="01234567"))
    found = said(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "error", "worker": "w-gpu0", "job": 3, "attempt": 1, "token": "01234567",
        "message": 'it said "no"\nand left, größe',
    }  # fmt: skip
    speak("worker w-gpu0 ends")
    assert said(capsys) | {"time": ""} == {
        "time": "", "level": "info", "worker": "w-gpu0", "message": "worker w-gpu0 ends",
    }  # fmt: skip


def test_an_attempt_says_who_it_is() -> None:
    from orchestrator.queue import Lease
    from orchestrator.settings import Settings
    from worker.supervisor.attempt import Attempt
    from worker.supervisor.lease import Outage

    heard: list[str] = []
    around = SimpleNamespace(engine=None, settings=Settings(), say=heard.append)
    attempt = Attempt(SimpleNamespace(lease=Lease(7, 2, "0123456789abcdef")), around, Outage())  # type: ignore[arg-type]
    attempt.say("shutdown: writing a checkpoint")
    attempt.say(LogLine("the lease is lost", level="warning"))
    first, second = (LogLine.of(text) for text in heard)
    assert str(first) == "job 7 attempt 2: shutdown: writing a checkpoint"
    assert first.about == {"job": 7, "attempt": 2, "token": "01234567"}
    assert (first.message, first.level, second.level) == ("shutdown: writing a checkpoint", "info", "warning")
    assert second == "job 7 attempt 2: the lease is lost"


@pytest.fixture
def libraries() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    Libraries(WorkerLog("", worker="w", form="json")).install()
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("libraries")
def test_libraries_speak_in_the_same_voice(capsys: Capture) -> None:
    logging.getLogger("celery.worker.consumer").warning("no broker at %s", "redis://h")
    assert said(capsys) | {"time": ""} == {
        "time": "", "level": "warning", "worker": "w", "logger": "celery.worker.consumer",
        "message": "no broker at redis://h",
    }  # fmt: skip
    logging.getLogger("mlflow").info("nobody needs to know")
    assert capsys.readouterr().err == ""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
    assert said(capsys)["logger"] == "py.warnings"
    try:
        raise OSError("broken")
    except OSError:
        logging.getLogger("mlflow.store").exception("it failed")
    found = said(capsys)
    assert (found["level"], found["message"].splitlines()[0]) == ("error", "it failed")
    assert found["message"].endswith("OSError: broken")


def test_a_record_that_is_none_ends_nothing(capsys: Capture) -> None:
    Libraries(WorkerLog(form="json")).handle(
        logging.makeLogRecord({"name": "x", "levelno": logging.WARNING, "msg": "%d", "args": ("a",)})
    )
    assert "Logging error" in capsys.readouterr().err
