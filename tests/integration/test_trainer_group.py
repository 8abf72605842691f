"""Jobs that share one trainer: what a person, a lost lease, an outage or a crash does to one, it does to that one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import queue
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import parse
from orchestrator.database.models import LeaseRow
from orchestrator.errors import StorageError
from tests.scripted_trainers import GO, Company
from tests.small_world import small_world


@pytest.fixture
def company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Company]:
    with small_world(tmp_path / "home", lease_seconds=2, stall_seconds=4) as world:
        yield Company(world, monkeypatch)


def test_one_trainer_for_all(company: Company) -> None:
    company.trainer("train(lambda: True)\n")
    assert company.run() == ["succeeded"] * 4
    assert company.trainers == 1
    for job in company.jobs:
        assert company.world.attempts(job) == [("converged", 0)]
        assert [point[0] for point in company.world.curve(job)] == [2048]
        log = company.world.settings.home / "logs" / str(job) / "1.log"
        assert f"job {job}: converged" in log.read_text(), "the log is found under every job"


def test_no_more_than_the_setting_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_world(tmp_path / "home", jobs_per_trainer=3) as world:
        company = Company(world, monkeypatch)
        company.trainer("train(lambda: True)\n")
        assert company.run() == ["succeeded"] * 4
        assert company.trainers == 2


def test_no_more_than_there_is_memory_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_world(tmp_path / "home", memory="1MB") as world:
        company = Company(world, monkeypatch)
        company.trainer("train(lambda: True)\n")
        assert company.run() == ["succeeded"] * 4
        assert company.trainers == 4


@pytest.mark.parametrize(("wish", "state"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_wish_about_one(company: Company, wish: str, state: str) -> None:
    company.trainer(GO)

    def ask() -> None:
        company.wait_begun()
        getattr(queue, wish)(company.world.engine, [company.jobs[1]])
        company.world.wait_state(company.jobs[1], state)
        assert [company.world.job(job).state for job in company.jobs].count("running") == 3
        company.go.touch()

    assert company.run(ask) == ["succeeded", state, "succeeded", "succeeded"]
    assert company.trainers == 1
    assert company.outcomes(company.jobs[1]) == [state]
    assert company.world.has_checkpoint(company.jobs[1], 1) == (wish == "pause")


def test_wishes_about_all_one_after_another(company: Company) -> None:
    company.trainer(GO)

    def ask() -> None:
        company.wait_begun()
        for job in company.jobs:
            queue.pause(company.world.engine, [job])
            company.world.wait_state(job, "paused")

    assert company.run(ask) == ["paused"] * 4
    assert all(company.world.has_checkpoint(job, 1) for job in company.jobs)
    assert all(company.outcomes(job) == ["paused"] for job in company.jobs)


def test_a_trainer_that_does_not_let_one_go_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_world(tmp_path / "home", terminate_seconds=0.5) as world:
        company = Company(world, monkeypatch)
        script = (
            "while not Path(os.environ['ORCH_TEST_GO']).exists(): time.sleep(0.05); [line.alive(1, j) for j in jobs]"
        )
        company.trainer(f"{script}\nfor job_id in list(jobs): end(job_id)\n")

        def ask() -> None:
            company.wait_begun()
            queue.pause(world.engine, [company.jobs[2]])
            world.wait_state(company.jobs[2], "paused")
            company.go.touch()

        assert company.run(ask) == ["succeeded", "succeeded", "paused", "succeeded"]


def test_one_that_fails_is_tried_again_alone(company: Company) -> None:
    company.trainer(
        "if together: line.send(Failure('OutOfMemory', 'no room', 'lower it', 79), first); jobs.pop(first)\n"
        "train(lambda: True)\n"
    )
    assert company.run() == ["succeeded"] * 4
    assert company.outcomes(company.jobs[0]) == ["out_of_memory", "converged"]
    assert all(company.outcomes(job) == ["converged"] for job in company.jobs[1:])
    assert company.trainers == 2


def test_out_of_memory_together_and_then_alone_is_the_end(company: Company) -> None:
    company.trainer(
        "if together: sys.exit(79)\n"
        "if first == 2: line.send(Failure('OutOfMemory', 'no room', 'lower it', 79), 2); jobs.pop(2)\n"
        "train(lambda: True)\n"
    )
    assert company.run() == ["succeeded", "failed", "succeeded", "succeeded"]
    assert company.outcomes(company.jobs[1]) == ["out_of_memory"] * 2
    assert "twice: no room" in (company.world.job(company.jobs[1]).reason or "")
    assert company.trainers == 5


def test_after_a_crash_of_two_each_goes_on_alone(company: Company) -> None:
    company.trainer("if together: end(first); end(first + 1); os.kill(os.getpid(), 9)\ntrain(lambda: True)\n")
    assert company.run() == ["succeeded"] * 4
    assert [company.outcomes(job) for job in company.jobs] == [["converged"]] * 2 + [["crashed", "converged"]] * 2
    assert company.trainers == 3, "each of the two again, alone"


def test_who_makes_a_trainer_crash_is_found_by_halves(company: Company) -> None:
    company.trainer(f"if {company.jobs[2]} in jobs: os.kill(os.getpid(), 11)\ntrain(lambda: True)\n")
    assert company.run() == ["succeeded", "succeeded", "failed", "succeeded"]
    first, second, guilty, other = (company.outcomes(job) for job in company.jobs)
    assert first == second == ["crashed", "converged"], "together"
    assert other == ["crashed", "crashed", "converged"]
    assert set(guilty) == {"crashed"}
    rows = [company.world.job(job) for job in company.jobs]
    assert [row.failures for row in rows] == [0, 0, len(guilty) - 2, 0], "alone alone it is charged"


def test_told_to_stop_all_are_released_with_a_checkpoint(company: Company) -> None:
    company.trainer(GO)

    def stop() -> None:
        company.wait_begun()
        company.supervisor.stop()

    assert company.run(stop) == ["queued"] * 4
    for job in company.jobs:
        assert company.outcomes(job) == ["preempted"]
        assert company.world.has_checkpoint(job, 1)
    leader = queue.claim(company.world.engine, queue.Worker("two", "h", 2, "cpu"), token="next", lease_seconds=60)
    assert leader
    assert leader.stream_key, "nobody failed: they go on together"
    assert leader.cursor == 768


def test_a_lost_lease_is_lost_for_one(company: Company) -> None:
    company.trainer(GO)
    job = company.jobs[2]

    def take_away() -> None:
        company.wait_begun()
        lease = company.world.one(LeaseRow, job_id=job)
        queue.release(company.world.engine, queue.Lease(job, lease.attempt, lease.token), outcome="taken")
        queue.pause(company.world.engine, [job])
        company.world.wait(lambda: any("lease is lost" in line for line in company.said), 10)
        company.go.touch()

    assert company.run(take_away) == ["succeeded", "succeeded", "paused", "succeeded"]
    assert company.outcomes(job) == ["taken"]
    assert company.world.curve(job) == [], "nothing more was written for it"


def test_f26_a_silent_trainer_fails_them_all(company: Company) -> None:
    company.trainer("if together: time.sleep(60)\ntrain(lambda: True)\n")
    assert company.run() == ["succeeded"] * 4
    assert all(company.outcomes(job) == ["stalled", "converged"] for job in company.jobs)


def test_an_end_that_cannot_be_written_yet_holds_nobody_up(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database refuses the first result for a while: the others train on, and nothing is lost."""
    company.trainer("end(first)\n" + GO)
    finish = queue.finish
    refused: list[int] = []

    def away(engine: object, lease: queue.Lease, result: object) -> None:
        if lease.job_id == company.jobs[0] and len(refused) < 3:
            refused.append(lease.job_id)
            raise StorageError("away")
        finish(engine, lease, result)  # type: ignore[arg-type]

    monkeypatch.setattr(queue, "finish", away)

    def wait() -> None:
        company.world.wait_state(company.jobs[0], "succeeded")
        assert company.world.job(company.jobs[1]).state == "running"
        company.go.touch()

    assert company.run(wait) == ["succeeded"] * 4
    assert len(refused) == 3
    assert all(company.outcomes(job) == ["converged"] for job in company.jobs)


def test_a_stumble_of_the_supervisor_leaves_what_is_done(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    company.trainer("if together: end(first)\ntrain(lambda: True)\n")
    begin = queue.begin
    stumbled: list[int] = []

    def stumble(engine: object, lease: queue.Lease, **more: object) -> None:
        if lease.job_id == company.jobs[3] and not stumbled:
            stumbled.append(lease.job_id)
            raise ZeroDivisionError
        begin(engine, lease, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(queue, "begin", stumble)
    assert company.run() == ["succeeded"] * 4
    assert company.outcomes(company.jobs[3]) == ["failed", "converged"]


def test_what_others_queue_does_not_join(company: Company) -> None:
    other = company.world.enqueue(JobConfig(), parse({"data": {"seed": 9}}), name="other")
    company.trainer("train(lambda: True)\n")
    assert company.run() == ["succeeded"] * 4
    assert [company.world.job(job).state for job in other] == ["succeeded"] * 2
    assert company.trainers == 2, "the first of the other sweep reads the same stream, the second does not"
