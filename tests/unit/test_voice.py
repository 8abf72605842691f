"""What a worker says, for people and for programs."""

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

from worker.voice import Remark, Voice

Capture = pytest.CaptureFixture[str]


def said(capture: Capture) -> dict[str, Any]:
    (line,) = capture.readouterr().err.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_remark_is_the_line_it_was() -> None:
    remark = Remark("released", prefix="job 3 attempt 2: ", level="warning", job=3, attempt=2)
    assert remark == "job 3 attempt 2: released"
    assert (remark.message, remark.level, remark.about) == ("released", "warning", {"job": 3, "attempt": 2})
    assert Remark.of(remark) is remark
    assert Remark.of("plain").about == {}


def test_text_for_people(capsys: Capture) -> None:
    Voice("gpu0", worker="w")(Remark("released", prefix="job 3: ", job=3))
    assert re.fullmatch(r"\d\d:\d\d:\d\d  \[gpu0\] job 3: released\n", capsys.readouterr().err)


def test_an_object_for_programs(capsys: Capture) -> None:
    speak = Voice("gpu0", worker="w-gpu0", form="json")
    speak(Remark('it said "no"\nand left, größe', prefix="job 3: ", level="error", job=3, attempt=1, token="01234567"))
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
    from worker.attempt import Attempt

    heard: list[str] = []
    around = SimpleNamespace(engine=None, settings=Settings(), say=heard.append)
    attempt = Attempt(SimpleNamespace(lease=Lease(7, 2, "0123456789abcdef")), around)  # type: ignore[arg-type]
    attempt.say("shutdown: writing a checkpoint")
    attempt.say(Remark("the lease is lost", level="warning"))
    first, second = (Remark.of(text) for text in heard)
    assert str(first) == "job 7 attempt 2: shutdown: writing a checkpoint"
    assert first.about == {"job": 7, "attempt": 2, "token": "01234567"}
    assert (first.message, first.level, second.level) == ("shutdown: writing a checkpoint", "info", "warning")
    assert second == "job 7 attempt 2: the lease is lost"
