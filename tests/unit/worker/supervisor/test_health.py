"""When a machine counts as unwell, and what its log says of that."""

from pathlib import Path

import pytest

from orchestrator.diagnosis.finding import Finding
from orchestrator.settings import Settings, load
from worker.supervisor import health
from worker.supervisor.health import Health


class Machine:
    """A machine whose checks come to `finding`, with what was said of it and a clock that a test moves."""

    def __init__(self, settings: Settings) -> None:
        self.said: list[str] = []
        self.finding: Finding | None = None
        self.now = 1000.0
        self.health = Health(settings, say=lambda line: self.said.append(str(line)), check=lambda _: self.finding)

    def look_again(self) -> bool:
        self.now += health.LONGEST_PAUSE_SECONDS
        return self.health.may_claim()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(load(start=tmp_path, environ={}))
    monkeypatch.setattr("worker.supervisor.health.time.monotonic", lambda: made.now)
    return made


def test_three_jobs_in_a_row_make_it_unwell_and_each_more_is_counted(machine: Machine) -> None:
    for job in (1, 2):
        machine.health.fault(job, "no room")
    assert machine.health.reason is None
    machine.health.fault(3, "no room")
    three = "3 jobs in a row could not be served here, the last one for: no room"
    assert machine.said == [f"unwell, and claims nothing: {three}; it looks again in 10 s, and then less often"]
    assert not machine.health.may_claim()
    assert machine.look_again()
    assert machine.said[1:] == [f"well again, and claims jobs. It had claimed none because of this: {three}"]
    machine.health.fault(4, "no room")
    assert machine.health.reason == "4 jobs in a row could not be served here, the last one for: no room"
    assert machine.said[2].startswith("unwell, and claims nothing: 4 jobs in a row")


def test_a_job_that_is_served_begins_the_count_anew(machine: Machine) -> None:
    for job in (1, 2, 3):
        machine.health.fault(job, "no room")
    assert machine.look_again()
    machine.health.served(4)
    for job in (5, 6):
        machine.health.fault(job, "no room")
        assert machine.health.reason is None
    machine.health.fault(7, "no room")
    assert machine.health.reason == "3 jobs in a row could not be served here, the last one for: no room"


def test_a_check_that_fails_is_said_once_whatever_its_figures(machine: Machine) -> None:
    machine.finding = Finding("FAIL", "disk", "1 GiB is free")
    machine.health.fault(1, "no room")
    assert machine.health.reason == "disk: 1 GiB is free"
    machine.finding = Finding("FAIL", "disk", "2 GiB are free")
    assert not machine.look_again()
    assert (machine.health.reason, len(machine.said)) == ("disk: 2 GiB are free", 1)
    machine.finding = None
    assert machine.look_again()
    assert machine.said[1] == "well again, and claims jobs. It had claimed none because of this: disk: 2 GiB are free"
    machine.health.fault(2, "no room")
    assert machine.health.reason == "2 jobs in a row could not be served here, the last one for: no room"
