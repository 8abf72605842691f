"""How attempts end, with trainers that are a few lines each: the supervisor's side of every exit, wish and outage."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import dispatch, queue
from orchestrator.config.job import JobConfig
from orchestrator.database.models import LeaseRow
from orchestrator.errors import StorageError
from tests.scripted_trainers import Scripted
from tests.small_world import World, small_world

START = """
import os, sys, time
from orchestrator.curves.point import Point
from worker.channel import SupervisorChannel
from worker.protocol import *
line = SupervisorChannel()
order = line.order(Order.from_json)
(job,) = order.jobs
def send(message): line.send(message, job.job_id)
def point(tokens): send(CurvePointMessage(Point(tokens, *(1000 / tokens for _ in range(11)))))
def save(tokens): send(CheckpointRef(f"{job.artifacts}/{tokens}", tokens, "ab"))
send(Started(job.resume[0].tokens_seen if job.resume else 0, {"n_latents": 8, "d_model": 4}))
line.training_from({job.job_id: 0})
"""
END = "send(Ended('converged', 2048, 1.5, None, 1.0, 2.0, 3.0, 4.0))\n"
YIELD = "while not line.must_yield: time.sleep(0.01); line.alive(0)\nsave(512)\nsys.exit(75)\n"


class Bench(Scripted):
    """One job."""

    start = START

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(world, monkeypatch)
        (self.job,) = world.enqueue(JobConfig())

    def run(self, meanwhile: Callable[[], object] = lambda: None, *, until_empty: bool = True) -> queue.State:
        self.work(meanwhile, until_empty=until_empty)
        return self.world.job(self.job).state  # type: ignore[return-value]

    def when(self, ready: Callable[[], object], then: Callable[[], object]) -> Callable[[], None]:
        def wait() -> None:
            self.world.wait(ready, 20)
            then()

        return wait

    def began(self) -> bool:
        return any(start is not None for _, start in self.world.attempts(self.job))

    @property
    def outcomes(self) -> list[str | None]:
        return [outcome for outcome, _ in self.world.attempts(self.job)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    # A first pause after a failure is a third of a lease at most.
    with small_world(tmp_path / "home", lease_seconds=2, stall_seconds=3) as world:
        yield Bench(world, monkeypatch)


def test_a_result(bench: Bench) -> None:
    bench.trainer("point(1024); point(2048)\n" + END)
    assert bench.run() == "succeeded"
    result = bench.world.result(bench.job)
    assert (result.outcome, result.fvu, result.untrained_fvu) == ("converged", 1000 / 2048, 1.5)
    assert (bench.world.job(bench.job).n_latents, bench.world.job(bench.job).d_model) == (8, 4)


def test_a_result_counts_even_if_the_trainer_falls_over_afterwards(bench: Bench) -> None:
    bench.trainer(END + "os.kill(os.getpid(), 11)")
    assert bench.run() == "succeeded"


@pytest.mark.parametrize(
    ("script", "outcomes", "says"),
    [
        ("line.send(Failure('ConfigError', 'no hook', 'name one')); sys.exit(78)", ["bad_config"], "no hook"),
        ("line.send(Failure('OutOfMemory', 'no room', '')); sys.exit(79)", ["out_of_memory"] * 2, "twice: no room"),
        ("print('the trace', file=sys.stderr); sys.exit(70)", ["failed"] * 3, "exit status 70"),
        ("os.kill(os.getpid(), 11)", ["crashed"] * 3, "SIGSEGV"),
    ],
    ids=["config", "memory", "internal", "crash"],
)
def test_failures(bench: Bench, script: str, outcomes: list[str], says: str) -> None:
    bench.trainer(script)
    assert bench.run() == "failed"
    assert bench.outcomes == outcomes
    assert says in (bench.world.job(bench.job).reason or "")
    if "trace" in script:
        assert "the trace" in str(bench.world.last_attempt(bench.job).error)


def test_f26_a_silent_trainer_is_killed_and_its_stacks_are_kept(bench: Bench) -> None:
    bench.trainer("time.sleep(60)")
    stop = bench.when(lambda: bench.outcomes[:1] == ["stalled"], bench.supervisor.stop)
    bench.run(stop, until_empty=False)
    assert "most recent call first" in (bench.world.settings.home / "logs" / str(bench.job) / "1.log").read_text()


def test_a_yield_nobody_asked_for_is_a_preemption(bench: Bench) -> None:
    bench.trainer("if not job.resume: save(512); sys.exit(75)\n" + END)
    assert bench.run() == "succeeded"
    assert bench.outcomes == ["preempted", "converged"]
    assert bench.world.attempts(bench.job)[1] == ("converged", 512)
    assert bench.world.job(bench.job).failures == 0


def test_a_checkpoint_saved_twice_counts_once_among_the_two_that_stay(bench: Bench) -> None:
    bench.trainer(
        "import os\n"
        "for tokens in (128, 256, 512, 512):\n"
        "    os.makedirs(f'{job.artifacts}/{tokens}', exist_ok=True); save(tokens)\n" + END
    )
    assert bench.run() == "succeeded"
    saved = bench.world.settings.artifacts_folder / str(bench.job) / "1"
    assert {path.name for path in saved.iterdir()} == {"256", "512"}


@pytest.mark.parametrize(("wish", "state"), [("pause", "paused"), ("cancel", "cancelled")])
def test_wishes(bench: Bench, wish: str, state: str) -> None:
    bench.trainer(YIELD)
    ask = bench.when(bench.began, lambda: getattr(queue, wish)(bench.world.engine, [bench.job]))
    assert bench.run(ask) == state
    assert bench.outcomes == [state]
    assert bench.world.has_checkpoint(bench.job, 1) == (wish == "pause")


def test_told_to_stop_it_releases(bench: Bench) -> None:
    bench.trainer(YIELD)
    assert bench.run(bench.when(bench.began, bench.supervisor.stop)) == "queued"
    assert bench.outcomes == ["preempted"]
    assert bench.world.has_checkpoint(bench.job, 1)


def test_f20_told_twice_it_kills(bench: Bench) -> None:
    bench.trainer("while True: time.sleep(0.01); line.alive(0)")

    def stop_twice() -> None:
        bench.supervisor.stop()
        bench.supervisor.stop()

    assert bench.run(bench.when(bench.began, stop_twice)) == "queued"
    assert bench.outcomes == ["preempted"]


def test_a_lost_lease_stops_everything(bench: Bench) -> None:
    bench.trainer("while True: time.sleep(0.01); point(1024)")

    def take_away() -> None:
        lease = bench.world.one(LeaseRow, job_id=bench.job)
        queue.release(bench.world.engine, queue.Lease(bench.job, lease.attempt, lease.token))
        bench.supervisor.stop()

    bench.run(bench.when(bench.began, take_away))
    assert any("lease is lost" in line for line in bench.said)


def test_f13_an_outage_is_survived_and_nothing_is_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database goes while the trainer measures; it comes back before the end, and every point is there."""
    bench.trainer("for t in range(1, 9): point(1024 * t); time.sleep(0.05)\ntime.sleep(2.5)\n" + END)
    until: list[float] = []

    def away(verb: Callable[..., object]) -> Callable[..., object]:
        def maybe(*arguments: object, **named: object) -> object:
            until[:] = until or [time.monotonic() + 1.5]
            if time.monotonic() < until[0]:
                raise StorageError("away")
            return verb(*arguments, **named)

        return maybe

    for name in ("record", "heartbeat"):
        monkeypatch.setattr(queue, name, away(getattr(queue, name)))
    assert bench.run() == "succeeded"
    assert [point[0] for point in bench.world.curve(bench.job)] == [1024 * t for t in range(1, 9)]


def test_f14_an_outage_that_lasts_makes_the_trainer_yield(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_world(tmp_path / "home", outage_seconds=0.5, lease_seconds=30) as world:
        bench = Bench(world, monkeypatch)
        bench.trainer(YIELD)
        heartbeat = queue.heartbeat
        monkeypatch.setattr(queue, "heartbeat", lambda *_, **__: (_ for _ in ()).throw(StorageError("away")))

        def mend() -> None:
            monkeypatch.setattr(queue, "heartbeat", heartbeat)
            bench.supervisor.stop()

        assert bench.run(bench.when(lambda: any("outage" in line for line in bench.said), mend)) == "queued"
        assert bench.outcomes == ["preempted"]


def test_a_stumble_of_the_supervisor_fails_the_job_and_not_the_worker(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.trainer(END)
    monkeypatch.setattr(queue, "begin", lambda *_, **__: 1 / 0)
    assert bench.run() == "failed"
    assert bench.outcomes == ["failed"] * 3
    assert any("ZeroDivisionError" in line for line in bench.said)


def test_until_empty_waits_for_what_others_run_and_for_retries(bench: Bench) -> None:
    bench.trainer(END)
    engine = bench.world.engine
    other = queue.claim(engine, queue.Worker("two", "there", 2, "cpu"), token="theirs", lease_seconds=2)
    assert other
    assert bench.run() == "succeeded", "its lease ran out, and this worker took over"
    assert bench.outcomes == ["lost", "converged"]


def test_a_ring_returns_when_the_queue_is_drained(bench: Bench) -> None:
    bench.trainer(END)
    states: list[str] = []

    def ring() -> None:
        bench.supervisor.wake()
        states.append(bench.world.job(bench.job).state)
        (another,) = bench.world.enqueue(JobConfig(), name="another")
        bench.supervisor.wake()
        states.append(bench.world.job(another).state)
        bench.supervisor.stop()

    bench.run(ring, until_empty=False)
    assert states == ["succeeded", "succeeded"]


def test_signals_reach_the_loop(bench: Bench) -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: bench.supervisor.stop())
    try:
        bench.trainer(YIELD)
        assert bench.run(bench.when(bench.began, lambda: os.kill(os.getpid(), signal.SIGUSR2))) == "queued"
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.timeout(60)
def test_a_signal_that_interrupts_no_wait_is_heeded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that comes just before the wait begins: sent to another thread, it leaves the main thread asleep."""
    with small_world(tmp_path / "home", poll_seconds=600, reconcile_seconds=600) as world:
        idle = Scripted(world, monkeypatch)

        def send() -> None:
            time.sleep(0.5)
            signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)

        before = signal.signal(signal.SIGUSR2, lambda *_: idle.supervisor.stop())
        try:
            idle.work(send, until_empty=False)
        finally:
            signal.signal(signal.SIGUSR2, before)


def test_after_an_outage_nobody_is_judged_for_a_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.trainer(END)
    released: list[bool] = []

    def reconcile(*_: object, release: bool) -> dispatch.Reconciled:
        released.append(release)
        if len(released) == 2:
            raise StorageError("away")
        if len(released) > 4 and release:
            bench.supervisor.stop()
        return dispatch.Reconciled([], 0)

    monkeypatch.setattr(dispatch, "reconcile", reconcile)
    assert bench.run(until_empty=False) == "succeeded"
    quiet = released[2:-1]
    assert not released[0]  # a worker that has just started cannot know how long everybody was away
    assert len(quiet) >= 3
    assert not any(quiet)
    assert released[-1]
