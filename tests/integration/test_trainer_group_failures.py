"""Jobs that share one trainer: the supervisor's own trouble with one of them, or with all."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator import queue
from orchestrator.errors import StorageError
from orchestrator.estimates import memory
from tests.scripted_trainers import GO, Company
from tests.small_world import small_world
from worker.supervisor import trainer_group
from worker.supervisor.attempt import Attempt
from worker.supervisor.trainer_group import TrainerGroup
from worker.supervisor.trainer_process import TrainerProcess

LET_GO = "train(lambda: True)\n"


@pytest.fixture
def company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Company]:
    with small_world(tmp_path / "home", lease_seconds=2, stall_seconds=10) as world:
        yield Company(world, monkeypatch)


def troubled(company: Company, verb: str, job: int, *errors: Exception) -> None:
    """Let the first calls of a verb for one job fail, each in its way."""
    true: Callable[..., object] = getattr(queue, verb)
    left = [*errors]

    def maybe(engine: object, lease: queue.Lease, *rest: object, **named: object) -> object:
        if lease.job_id == job and left:
            raise left.pop(0)
        return true(engine, lease, *rest, **named)

    company.monkeypatch.setattr(queue, verb, maybe)


def test_a_log_that_cannot_be_linked_does_not_matter(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "symlink_to", refuse)
    company.trainer(LET_GO)
    assert company.run() == ["succeeded"] * 4
    assert company.trainers == 1


def test_no_trainer_outlives_an_error_before_the_first_word(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    alive: list[bool] = []
    announce, give_up = Attempt.announce, Attempt.give_up

    def stumble(attempt: Attempt, pid: int) -> None:
        if not started:
            started.append(pid)
            raise OSError
        announce(attempt, pid)

    def look(attempt: Attempt, error: Exception) -> None:
        alive.append(psutil.pid_exists(started[0]))
        give_up(attempt, error)

    monkeypatch.setattr(Attempt, "announce", stumble)
    monkeypatch.setattr(Attempt, "give_up", look)
    company.trainer(LET_GO)
    assert company.run() == ["succeeded"] * 4
    assert alive == [False] * 4


def test_a_point_that_cannot_be_stored_is_the_trouble_of_one(company: Company) -> None:
    job = company.jobs[1]
    company.trainer("point(first + 1, 512)\n" + GO)
    troubled(company, "record", job, ValueError("no such point"))

    def wait() -> None:
        company.world.wait(lambda: company.outcomes(job)[:1] == ["failed"], 20)
        assert [company.world.job(other).state for other in company.jobs].count("running") == 3
        company.go.touch()

    assert company.run(wait) == ["succeeded"] * 4
    assert company.outcomes(job) == ["failed", "converged"]
    assert all(company.outcomes(other) == ["converged"] for other in company.jobs if other != job)
    assert company.trainers == 2
    assert any(f"job {job}: an error in the supervisor" in line and "Traceback" in line for line in company.said)


def test_a_result_that_cannot_be_stored_is_the_trouble_of_one(company: Company) -> None:
    company.trainer("if together: end(first)\n" + LET_GO)
    troubled(company, "finish", company.jobs[0], ValueError("no tail"))
    assert company.run() == ["succeeded"] * 4
    assert [company.outcomes(job) for job in company.jobs] == [["failed", "converged"]] + [["converged"]] * 3


def test_a_result_that_waits_is_stored_whatever_was_before_it(company: Company) -> None:
    """While the database is away a point and the result wait; then the point cannot be stored."""
    company.trainer("end(first)\n" + GO)
    troubled(company, "record", company.jobs[0], StorageError("away"), ValueError("no such point"))

    def wait() -> None:
        company.world.wait_state(company.jobs[0], "succeeded")
        company.go.touch()

    assert company.run(wait) == ["succeeded"] * 4
    assert all(company.outcomes(job) == ["converged"] for job in company.jobs)
    assert company.world.curve(company.jobs[0]) == []


def test_a_slow_look_at_the_leases_lets_no_backlog_grow(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    supervise = TrainerGroup.supervise

    def slowly(group: TrainerGroup, trainer: TrainerProcess) -> None:
        time.sleep(0.3)
        supervise(group, trainer)

    monkeypatch.setattr(TrainerGroup, "supervise", slowly)
    company.trainer("for tokens in range(1, 101): point(first, tokens)\n" + LET_GO)
    began = time.monotonic()
    assert company.run() == ["succeeded"] * 4
    assert len(company.world.curve(company.jobs[0])) == 101
    assert time.monotonic() - began < 15, "not a look per message"


def test_messages_without_end_do_not_keep_from_the_leases(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_group, "LISTEN_SECONDS", 0.1)
    company.trainer("while True: [line.alive(1, job) for job in jobs]\n")

    def stop_twice() -> None:
        company.wait_begun()
        company.supervisor.stop()
        company.supervisor.stop()

    assert company.run(stop_twice) == ["queued"] * 4


def test_a_database_that_is_away_is_waited_for_once_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_world(tmp_path / "home", lease_seconds=30) as world:
        company = Company(world, monkeypatch)
        company.trainer(GO)
        supervise, heartbeat = TrainerGroup.supervise, queue.heartbeat
        rounds: list[list[int]] = []

        def count(group: TrainerGroup, trainer: TrainerProcess) -> None:
            rounds.append([])
            supervise(group, trainer)

        def away(_: object, lease: queue.Lease, **__: object) -> None:
            rounds[-1].append(lease.job_id)
            raise StorageError("away")

        monkeypatch.setattr(TrainerGroup, "supervise", count)

        def mend() -> None:
            company.wait_begun()
            monkeypatch.setattr(queue, "heartbeat", away)
            world.wait(lambda: sum(map(len, rounds)) >= 3, 20)
            monkeypatch.setattr(queue, "heartbeat", heartbeat)
            company.go.touch()

        assert company.run(mend) == ["succeeded"] * 4
        assert max(map(len, rounds)) == 1


def test_an_error_while_companions_are_looked_for_is_a_failure(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [OSError("a disk")]

    def ask(_: object) -> None:
        if left:
            raise left.pop()

    monkeypatch.setattr(memory.Room, "ask", ask)
    company.trainer(LET_GO)
    assert company.run() == ["succeeded"] * 4
    assert company.outcomes(company.jobs[0]) == ["failed", "converged"]
    assert all(company.outcomes(job) == ["converged"] for job in company.jobs[1:])


def test_the_machine_is_not_asked_within_a_claim(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = queue.claim_companion
    claiming: list[bool] = []
    asked: list[bool] = []

    def within(*arguments: object, **named: object) -> queue.Claim | None:
        claiming.append(True)
        try:
            return claim(*arguments, **named)  # type: ignore[arg-type]
        finally:
            claiming.clear()

    monkeypatch.setattr(queue, "claim_companion", within)

    def free() -> int:
        asked.append(bool(claiming))
        return 1 << 40

    monkeypatch.setattr(memory, "free_in_memory", free)
    company.trainer(LET_GO)
    assert company.run() == ["succeeded"] * 4
    assert company.trainers == 1
    assert asked == [False]


def test_a_companion_whose_answer_was_lost_is_adopted_at_once(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = queue.claim_companion
    tokens: list[object] = []

    def lossy(*arguments: object, **named: object) -> queue.Claim | None:
        tokens.append(named["token"])
        found = claim(*arguments, **named)  # type: ignore[arg-type]
        if len(tokens) < 3:
            raise StorageError("the answer was lost")
        return found

    monkeypatch.setattr(queue, "claim_companion", lossy)
    company.trainer(LET_GO)
    assert company.run() == ["succeeded"] * 4
    assert len({*tokens[:3]}) == 1
    assert company.trainers == 1
    assert all(company.outcomes(job) == ["converged"] for job in company.jobs)
