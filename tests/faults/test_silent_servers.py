"""Servers that take connections and never answer, and readers of a log that never read: nothing waits for them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.database.answering import Patience
from orchestrator.database.engine import connect, reading
from orchestrator.errors import StorageError
from tests import servers
from tests.faults.conftest import MakeWorld
from tests.faults.proxy import Proxy, proxy
from tests.faults.test_tracking_store import answers, tracking_server
from tests.small_world import COUNTING, ENDLESS, ROOT, World, is_gone, small_config, trainers


@pytest.fixture
def between(postgres: servers.Server) -> Iterator[Proxy]:
    with proxy(postgres.url) as made:
        yield made
        made.is_stalled = False


def test_a_wait_on_a_server_ends_by_our_own_clock(
    database_url: str, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patience, "seconds", 0.5)
    engine = connect(between.before(database_url))
    with reading(engine) as session:
        session.execute(text("SELECT 1"))
        session.execute(text("SELECT pg_sleep(0.3)"))
    between.is_stalled = True
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"not answered|connection timeout") as caught, reading(engine) as session:
        session.execute(text("SELECT 1"))
    assert time.monotonic() - started < 15
    assert "takes connections and does not answer" in caught.value.hint
    between.is_stalled = False
    with reading(engine) as session:
        assert session.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()


def test_a_worker_whose_database_never_answers_saves_and_stops(
    make_world: MakeWorld, database_url: str, between: Proxy, subject: Path
) -> None:
    world = make_world(database_url=database_url)
    (job,) = world.enqueue(small_config(subject, max_tokens=ENDLESS))
    through = {"ORCH_DATABASE_URL": between.before(database_url), "ORCH_OUTAGE_SECONDS": "1"}
    worker = world.work(**through, module="tests.faults.crashing", ORCH_PATIENCE_SECONDS="5")
    world.wait(lambda: world.is_in_training(job, 1))
    (trainer,) = trainers(worker)
    between.is_stalled = True
    world.wait(lambda: "outage: writing a checkpoint" in world.said(), 60)
    world.wait(lambda: is_gone(trainer), 60)
    worker.terminate()
    started = time.monotonic()
    assert worker.wait(45) == 0, world.said()
    assert time.monotonic() - started < 45
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "status"], env={**os.environ, **world.environ, **through}, cwd=ROOT,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 5
    assert "takes connections and does not answer" in done.stderr
    assert "Another process holds" not in done.stderr


def _hold(world: World) -> Path:
    return world.settings.home / "hold"


def _work_quickly(world: World, **variables: str) -> "subprocess.Popen[bytes]":
    """Start a worker whose trainers only count, and wait before their end while there is a file to hold them."""
    return world.work(**COUNTING, ORCH_STEPS="10", ORCH_HOLD=str(_hold(world)), **variables)


def check_nothing_waits(world: World, worker: "subprocess.Popen[bytes]", subject: Path) -> None:
    """While MLflow does not answer a job ends, another is trained, and the worker stops in time and says what lacks."""
    (short,) = world.enqueue(small_config(subject, max_tokens=4096), name="short")
    world.wait_state(short, "succeeded")
    _hold(world).touch()  # the next one does not end by itself
    (long,) = world.enqueue(small_config(subject, max_tokens=ENDLESS), name="long")
    world.wait(lambda: world.is_in_training(long, 1))
    worker.terminate()
    started = time.monotonic()
    assert worker.wait(30) == 0, world.said()
    assert time.monotonic() - started < 30
    assert world.attempts(short) == [("max_tokens", 0)]
    assert [outcome for outcome, _ in world.attempts(long)] == ["preempted"]
    assert "MLflow lacks the latest of this worker" in world.said()


def test_an_mlflow_that_never_answers_delays_no_job_and_no_stop(make_world: MakeWorld, subject: Path) -> None:
    """It takes connections and what is sent, and nothing comes back: no server is needed for that."""
    world = make_world()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        check_nothing_waits(world, _work_quickly(world, ORCH_TRACKING_URL=url), subject)


@pytest.mark.parametrize("is_served", [True, False], ids=["behind a server", "used as it is"])
def test_an_mlflow_whose_database_never_answers_delays_no_job_and_no_stop(
    make_world: MakeWorld, empty_database_url: str, between: Proxy, subject: Path, tmp_path: Path, is_served: bool
) -> None:
    """Here the worker's own database is another one; MLflow had answered before, so that a call of it is under way."""
    world = make_world()
    store = between.before(empty_database_url)
    with tracking_server(tmp_path, store) if is_served else nullcontext(store) as url:
        if is_served:
            world.wait(lambda: answers(url), 120)
        worker = _work_quickly(world, ORCH_TRACKING_URL=url)
        (first,) = world.enqueue(small_config(subject, max_tokens=4096))
        world.wait(lambda: world.job(first).mlflow_run_id is not None, 120)
        between.is_stalled = True
        check_nothing_waits(world, worker, subject)
        between.is_stalled = False


def _piped(world: World, reader: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start a worker whose log goes through a pipe to a reader, both in one process group, as a shell does it."""
    worker = f"'{sys.executable}' -m worker --threads 1 --device cpu {' '.join(arguments)}"
    environ = {**os.environ, "ORCH_TRACKING_URL": "http://127.0.0.1:1", **world.environ}
    shell = subprocess.Popen(
        ["bash", "-c", f"set -o pipefail; {worker} 2>&1 | {reader}"], env=environ, cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    world.workers.append(shell)
    return shell


@pytest.mark.parametrize("reader", ["head -n 1", "sleep 300", "tee /dev/full"])
def test_a_log_that_nobody_reads_ends_and_delays_nothing(world: World, subject: Path, reader: str) -> None:
    (job,) = world.enqueue(small_config(subject, max_tokens=4096))
    noise = {"ORCH_LOG_FORMAT": "json"} if reader == "sleep 300" else {}
    world.environ |= noise
    shell = _piped(world, reader, "--until-empty")
    world.wait_state(job, "succeeded")
    assert world.attempts(job) == [("max_tokens", 0)]
    os.killpg(shell.pid, signal.SIGKILL)


def test_ctrl_c_to_a_worker_and_its_tee_saves(world: World, subject: Path) -> None:
    (job,) = world.enqueue(small_config(subject, max_tokens=ENDLESS))
    shell = _piped(world, f"tee {world.settings.home}/log")
    world.wait(lambda: world.is_in_training(job, 1))
    os.killpg(shell.pid, signal.SIGINT)
    world.wait_state(job, "queued")
    assert [outcome for outcome, _ in world.attempts(job)] == ["preempted"]
    assert (world.job(job).preemptions, world.job(job).failures) == (1, 0)
    shell.wait(60)


def test_a_log_on_a_full_disk(world: World, subject: Path) -> None:
    (job,) = world.enqueue(small_config(subject, max_tokens=4096))
    with Path("/dev/full").open("wb") as full:
        worker = subprocess.Popen(
            [sys.executable, "-m", "worker", "--threads", "1", "--device", "cpu", "--until-empty"], cwd=ROOT,
            env={**os.environ, "ORCH_TRACKING_URL": "http://127.0.0.1:1", **world.environ}, stderr=full, stdout=full,
        )  # fmt: skip
    world.workers.append(worker)
    assert worker.wait(120) == 0
    assert world.attempts(job) == [("max_tokens", 0)]
