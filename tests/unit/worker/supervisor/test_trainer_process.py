"""Children that speak, fall silent, refuse to go, or lose their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from orchestrator.config.job import JobConfig
from worker.protocol import Alive, Assignment, Exit, Left, Order, Said
from worker.supervisor.trainer_process import TrainerProcess, meaning

SPEAK = """
import sys, time
from worker.channel import SupervisorChannel
from worker.protocol import Order
line = SupervisorChannel()
order = line.order(Order.from_json)
print("a stray print")
line.send(__import__("worker.protocol").protocol.Alive(order.jobs[0].job_id, 1.0), 7)
"""

NOISE = """
print("noise")
print('{"type": "alive", "job": null, "tokens_seen": 5, "tokens_per_second": 2.0}')
"""


def order_for(parent: int) -> Order:
    job = Assignment(job_id=7, attempt=1, config=JobConfig(), artifacts="a", resume=())
    return Order(
        jobs=(job,), tokens_folder="t", compile_folder="c", device="cpu", threads=1, checkpoint_seconds=1.0,
        supervisor=parent,
    )  # fmt: skip


def start(tmp_path: Path, script: str) -> TrainerProcess:
    command = [sys.executable, "-c", script]
    return TrainerProcess(order_for(os.getpid()), log=tmp_path / "logs" / "1.log", command=command)


def eventually(what: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_speaks_and_stray_prints_go_to_the_log(tmp_path: Path) -> None:
    child = start(tmp_path, SPEAK)
    assert child.next(10) == Said(Alive(7, 1.0), 7)
    assert child.next(10) is None
    assert child.ended
    assert child.close() == 0
    assert "a stray print" in child.log.read_text()


def test_a_job_that_does_not_train_is_alive(tmp_path: Path) -> None:
    """An evaluation says of each job how far it is, and at no time that its training starts."""
    child = start(tmp_path, SPEAK + "line.alive(5, 7, phase='n2g')\nline.alive(6, 7, phase='n2g')")
    assert child.next(10) == Said(Alive(7, 1.0), 7)
    said = child.next(10)
    assert said
    assert isinstance(said.message, Alive)
    assert (said.message.tokens_seen, said.message.phase, said.job_id) == (5, "n2g", 7)
    assert child.next(10) is None  # the second came within a second
    assert child.close() == 0


def test_lines_that_are_no_messages_are_passed_over(tmp_path: Path) -> None:
    child = start(tmp_path, NOISE)
    assert child.next(10) == Said(Alive(5, 2.0), None)
    child.close()


def test_sigterm_with_nothing_to_save_ends_it_at_once(tmp_path: Path) -> None:
    child = start(tmp_path, SPEAK + "time.sleep(60)")
    assert child.next(10)
    child.terminate()
    assert child.next(10) is None
    assert child.close() == Exit.YIELDED


def test_sigterm_in_training_is_a_flag(tmp_path: Path) -> None:
    script = SPEAK + "line.training_from({7: 0})\nwhile not line.must_yield: time.sleep(0.01)\nsys.exit(3)"
    child = start(tmp_path, script)
    assert child.next(10)
    time.sleep(0.1)
    child.terminate()
    assert child.next(10) is None
    assert child.close() == 3


def test_kill_takes_what_the_child_started(tmp_path: Path) -> None:
    script = f"{SPEAK}\nimport subprocess\np = subprocess.Popen(['sleep', '60'])\nline.alive(p.pid)\ntime.sleep(60)"
    child = start(tmp_path, "import worker.channel; worker.channel.ALIVE_SECONDS = 0" + script)
    assert child.next(10)
    said = child.next(10)
    assert said
    assert isinstance(said.message, Alive)
    pid = said.message.tokens_seen
    assert not is_gone(pid)
    assert child.close() == -signal.SIGKILL
    eventually(lambda: is_gone(pid))


def test_silence_is_measured(tmp_path: Path) -> None:
    child = start(tmp_path, SPEAK + "time.sleep(60)")
    assert child.next(10)
    assert child.next(0.3) is None
    assert not child.ended
    assert 0.25 < child.silent_seconds < 5
    child.dump_stacks()
    eventually(lambda: "most recent call first" in child.log.read_text())
    child.close()


@pytest.mark.parametrize("keeps_pipe", [True, False], ids=["death signal", "end of input"])
def test_it_dies_with_its_supervisor(tmp_path: Path, keeps_pipe: bool) -> None:
    """A supervisor is killed: its trainer goes by the death signal, and where there is none by the end of its input."""
    trainer = SPEAK + "line.training_from({7: 0})\ntime.sleep(60)"
    if not keeps_pipe:
        trainer = trainer.replace(
            "line = SupervisorChannel()",
            "import worker.channel as channel; channel.die_with_parent = lambda: 0\nline = SupervisorChannel()",
        )
    supervisor = f"""
import os, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_trainer_process import order_for
from worker.supervisor.trainer_process import TrainerProcess
command = [sys.executable, "-c", {trainer!r}]
child = TrainerProcess(order_for(os.getpid()), log=Path({str(tmp_path / "log")!r}), command=command)
child.next(10)
print(child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", supervisor], stdout=subprocess.PIPE) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert not is_gone(pid)
        process.kill()
    eventually(lambda: is_gone(pid))


def test_wishes_reach_the_trainer(tmp_path: Path) -> None:
    script = """
while not (wishes := line.drop_requests()): time.sleep(0.01)
assert [(wish.job_id, wish.save) for wish in wishes] == [(7, True)], wishes
while not (wishes := line.drop_requests()): time.sleep(0.01)
assert [(wish.job_id, wish.save) for wish in wishes] == [(8, False)], wishes
line.send(__import__("worker.protocol").protocol.Left(512), 7)
"""
    child = start(tmp_path, SPEAK + script)
    assert child.next(10)
    child.drop(7, save=True)
    time.sleep(0.2)
    child.drop(8, save=False)
    assert child.next(10) == Said(Left(512), 7), child.log.read_text()
    assert child.next(10) is None
    child.drop(9, save=True)  # nobody is there to hear it
    assert child.close() == 0


def test_the_environment_of_a_trainer(tmp_path: Path) -> None:
    names = ("THP_MEM_ALLOC_ENABLE", "TORCHINDUCTOR_CACHE_DIR")
    child = start(tmp_path, f"{SPEAK}import os\nfor name in {names}: print(os.environ[name])")
    child.next(10)
    child.next(10)
    assert child.close() == 0
    assert child.log.read_text().splitlines()[-2:] == ["1", "c"]


def test_no_password_of_a_server_is_in_the_environment_of_a_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "PGPASSWORD": "s3cret-pg", "PGPASSFILE": "/s3cret-file", "ORCH_DATABASE_URL": "postgresql://orch:s3cret@db/orch",
        "ORCH_BROKER_URL": "redis://:s3cret@redis/0", "ORCH_TRACKING_URL": "http://u:s3cret@mlflow",
        "MLFLOW_TRACKING_PASSWORD": "s3cret-flow", "REDIS_PASSWORD": "s3cret-redis", "REDISCLI_AUTH": "s3cret-cli",
        "POSTGRES_PASSWORD": "s3cret-role",
    }  # fmt: skip
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    child = TrainerProcess(order_for(os.getpid()), log=tmp_path / "log")  # the real one
    deadline = time.monotonic() + 10
    while "OMP_NUM_THREADS" not in (told := psutil.Process(child.pid).environ()):  # empty until it is carried out
        assert time.monotonic() < deadline
    child.kill()
    child.close()
    assert "s3cret" not in str(told)


def test_an_order_of_a_supervisor_that_is_gone_is_not_taken(tmp_path: Path) -> None:
    child = TrainerProcess(order_for(1), log=tmp_path / "log", command=[sys.executable, "-c", SPEAK])
    assert child.next(10) is None
    assert child.close() == Exit.YIELDED


@pytest.mark.parametrize(
    ("code", "outcome", "retry"),
    [
        (Exit.YIELDED, "preempted", True),
        (Exit.BAD_CONFIG, "bad_config", False),
        (Exit.OUT_OF_MEMORY, "out_of_memory", True),
        (Exit.INTERNAL, "failed", True),
        (1, "failed", True),
        (-signal.SIGSEGV, "crashed", True),
        (-signal.SIGKILL, "crashed", True),
    ],
)
def test_what_an_exit_status_means(code: int, outcome: str, retry: bool) -> None:
    ending = meaning(code)
    assert (ending.outcome, ending.retry) == (outcome, retry)
    assert "SIGSEGV" in ending.text or code != -signal.SIGSEGV


@pytest.mark.parametrize("own", [None, "active"])
def test_threads_that_wait_sleep_unless_the_machine_says_otherwise(
    own: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    trainer = start(tmp_path, "import os, sys; print(os.environ['OMP_WAIT_POLICY'], file=sys.stderr)")
    while not trainer.ended:
        trainer.next(0.1)
    trainer.close()
    assert trainer.log.read_text().split() == [own or "passive"]
