"""Commands of an operator (workers, queue, top) on a real database; workers are rows that tests write."""

import os
import re
import subprocess
import sys
import termios
from collections.abc import Iterator
from socket import gethostname

import pytest
from sqlalchemy import Engine, update

from orchestrator import queue, results
from orchestrator.cli.main import run
from orchestrator.database.engine import db_now, transaction
from orchestrator.database.models import LeaseRow, WorkerRow
from orchestrator.database.schema import open_database
from orchestrator.queue import workers as registry
from orchestrator.settings import Settings
from tests.integration.test_cli_terminal import terminal
from tests.queue_shorthand import claim, enqueue
from tests.worker_shorthand import items, let_commands_reach, report, silence

Capture = pytest.CaptureFixture[str]
HOUR = 3600.0


@pytest.fixture
def engine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    let_commands_reach(settings, monkeypatch)
    engine = open_database(settings)
    yield engine
    engine.dispose()


def test_the_list_of_workers(engine: Engine, capsys: Capture) -> None:
    assert run(["worker", "list"]) == 0
    assert "There is no worker. Start one with: orch worker" in capsys.readouterr().err
    enqueue(engine, 2)
    for name in ("w1", "w2", "w3"):
        report(engine, name)
    lease = claim(engine).lease
    queue.heartbeat(engine, lease, lease_seconds=60, tokens_seen=5, tokens_per_second=1500.0)
    silence(engine, "w2")
    registry.ask(engine, ["w3"], "drain")
    assert run(["worker", "list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["WORKER", "HOST", "DEVICE", "JOBS", "TOK/S", "BEAT", "VERSION", "STATE"]
    assert [line.split()[0] for line in lines] == ["w1", "w2", "w3"]
    assert [line.split()[3:5] for line in lines] == [["1", "1.50k"], ["–", "–"], ["–", "–"]]
    assert [line.rsplit("  ", 1)[1].strip() for line in lines] == ["at work", "lost", "draining"]
    assert run(["worker", "list", "-o", "json"]) == 0
    first = items(capsys)[0]
    assert (first["name"], first["jobs"], first["state"]) == ("w1", [1], "at work")
    registry.sign_off(engine, "w3")
    assert run(["worker", "list", "-o", "name"]) == 0
    assert capsys.readouterr().out.split() == ["w1", "w2"]
    assert run(["worker", "list", "--ended", "-o", "name"]) == 0
    assert capsys.readouterr().out.split() == ["w1", "w2", "w3"]


def test_a_health_check_knows_a_worker_that_hangs_or_is_unwell(engine: Engine, capsys: Capture) -> None:
    def says(code: int) -> str:
        assert run(["worker", "check"]) == code
        written = capsys.readouterr()
        return written.out + written.err

    def registered(token: str, pid: int, host: str = gethostname(), unwell: str | None = None) -> None:
        worker = queue.Worker(token, host, pid, "cpu")
        registry.report(engine, worker, token=token, version="1.0", every_seconds=10.0, unwell=unwell)

    registered("elsewhere", os.getpid(), host="another")
    assert "no worker runs on this host" in says(5)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        registered("killed", process.pid)
        silence(engine, "killed")
        hangs = rf"worker killed hangs: not heard of for \d+ s, and process {process.pid} is there"
        assert re.search(hangs, says(5))
        registered("at work", process.pid)  # in a container the first process has the same number again
        assert re.search(r"1 worker of this host reported within \d+ s", says(0))
        registered("beside", os.getpid(), unwell="disk: 0.0 GB free")
        assert "worker beside is unwell, and claims nothing: disk: 0.0 GB free" in says(5)
        registered("beside", os.getpid())
        assert "2 workers of this host reported" in says(0)
        process.kill()
    registry.sign_off(engine, "beside")
    assert "no worker runs on this host" in says(5)


def test_asking_workers_to_leave(engine: Engine, capsys: Capture) -> None:
    for name in ("node7-gpu0", "node7-gpu1", "node8-gpu0", "old"):
        report(engine, name)
    registry.sign_off(engine, "old")
    silence(engine, "node8-gpu0")
    assert run(["worker", "drain", "node7-*"]) == 0
    assert capsys.readouterr().out == "node7-gpu0: asked to drain\nnode7-gpu1: asked to drain\n"
    assert [report(engine, name) for name in ("node7-gpu0", "node7-gpu1")] == ["drain", "drain"]
    assert run(["worker", "stop", "node7-gpu0", "-o", "json"]) == 0
    assert items(capsys) == [{"name": "node7-gpu0", "host": "here", "pid": 1, "effect": "asked to stop"}]
    assert run(["worker", "drain", "--all"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "node7-gpu0: was asked to stop before",
        "node7-gpu1: asked to drain",
        "node8-gpu0: is lost; it would hear of it if it came back",
    ]
    assert report(engine, "node7-gpu0") == "stop"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["drain", "node7-gpu9"], 3, "did you mean 'node7-gpu0'"),
        (["stop", "node7-gpu0", "nobody"], 3, "Workers: node7-gpu0"),
        (["drain", "old"], 4, "worker old has ended already"),
        (["drain"], 2, "Name workers, or say --all"),
        (["stop", "--all", "node7-gpu0"], 2, "Name workers, or say --all"),
        (["--until-empty", "list"], 2, "--until-empty is for a worker that trains"),
        (["--device", "cpu", "--devices", "cpu"], 2, "give one of them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_who_is_not_there(engine: Engine, capsys: Capture, arguments: list[str], code: int, says: str) -> None:
    report(engine, "node7-gpu0")
    report(engine, "old")
    registry.sign_off(engine, "old")
    assert run(["worker", *arguments]) == code
    assert says in capsys.readouterr().err
    assert report(engine, "node7-gpu0") == "run", "all or nobody"


def test_pausing_the_queue(engine: Engine, capsys: Capture) -> None:
    enqueue(engine, 2)
    claim(engine)
    assert run(["queue", "pause"]) == 0
    assert capsys.readouterr().out == "paused\n"
    assert run(["queue", "pause"]) == 0
    assert capsys.readouterr().out == "already paused\n"
    assert run(["status"]) == 0
    said = capsys.readouterr()
    assert "QueuePaused" in said.out
    assert "The queue is paused" in said.err
    assert run(["explain", "2"]) == 0
    assert "orch queue resume" in capsys.readouterr().out
    assert run(["explain", "1"]) == 0
    assert "It runs." in capsys.readouterr().out
    assert run(["queue", "resume"]) == 0
    assert capsys.readouterr().out == "open\n"
    assert run(["queue", "resume"]) == 0
    assert capsys.readouterr().out == "already open\n"
    assert claim(engine).lease.job_id == 2


def test_explain_knows_the_workers(engine: Engine, capsys: Capture) -> None:
    def explained(job: int) -> str:
        assert run(["explain", str(job)]) == 0
        return capsys.readouterr().out

    enqueue(engine, 2)
    assert "No worker is at work. Start one with: orch worker" in explained(2)
    report(engine, "w1")
    claim(engine)
    registry.ask(engine, ["w1"], "drain")
    assert "(WorkersLeaving)" in explained(2)
    assert "it claims no more. Start another with: orch worker" in explained(2)
    assert "Its worker drains: it finishes this job" in explained(1)
    registry.ask(engine, ["w1"], "stop")
    assert "Its worker was asked to stop: it hands this job back" in explained(1)
    silence(engine, "w1")
    assert "It runs." in explained(1)
    assert "Its worker has not reported for 1m" in explained(1)
    assert "Nobody renews its lease, which runs out in" in explained(1)
    assert "renewed in time" not in explained(1)
    with transaction(engine) as session:
        session.execute(update(LeaseRow).values(expires_at=db_now() - 65))
    lapsed = r"Its lease ran out 1m\d\ds ago: any worker puts it back into the queue 15 s after that"
    assert re.search(lapsed, explained(1))
    assert "It runs." not in explained(1)


def test_explain_names_everything_in_the_way(engine: Engine, capsys: Capture) -> None:
    def explained(job: int) -> str:
        assert run(["explain", str(job)]) == 0
        return capsys.readouterr().out

    enqueue(engine, 2, max_parallel=1)
    report(engine, "w1")
    claim(engine)
    assert run(["queue", "pause"]) == 0
    assert "Also: As many jobs of its sweep run" in explained(2)
    assert "The whole queue is paused" in explained(2)
    queue.pause(engine, [2])
    assert "It is paused. To end that: orch resume 2" in explained(2)
    assert "Also: The whole queue is paused" in explained(2)
    silence(engine, "w1")
    assert run(["queue", "resume"]) == 0
    with transaction(engine) as session:
        session.execute(update(LeaseRow).values(expires_at=db_now() - 65))
    assert "Also: No worker is at work" in explained(2)


def test_top_in_a_pipe_is_printed_once(engine: Engine, capsys: Capture) -> None:
    enqueue(engine, 2)
    report(engine, "w1")
    lease = claim(engine).lease
    queue.heartbeat(engine, lease, lease_seconds=60, tokens_seen=5, tokens_per_second=1500.0)
    assert run(["top"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    head, _, workers, one, _, jobs, job = out.splitlines()
    assert "● 1 running" in head
    assert "1.50k tokens/s" in head
    assert (workers.split()[0], one.split()[0]) == ("WORKER", "w1")
    assert (jobs.split()[0], job.split()[0], job.split()[-1]) == ("ID", "1", "w1")


@pytest.mark.parametrize(("keys", "code"), [("q", 0), ("\x03", 130)])
def test_top_in_a_terminal(sqlite_settings: Settings, keys: str, code: int) -> None:
    engine = open_database(sqlite_settings)
    enqueue(engine, 40)
    for number in range(30):
        report(engine, f"w{number}")
    with terminal("top", "--every", "0.5", columns=90) as screen:
        before = termios.tcgetattr(screen._own)
        screen.until("q ends")
        assert "○ 40 queued" in screen.text
        assert "more workers" in screen.text
        claim(engine)
        screen.until("● 1 running")
        assert not termios.tcgetattr(screen._own)[3] & termios.ICANON
        screen.type(keys)
        assert screen.end() == code
        assert "Traceback" not in screen.text
        assert "\x1b[?25h" in screen.text.rpartition("\x1b[?25l")[2], "the cursor is there again"
        assert termios.tcgetattr(screen._own) == before
    engine.dispose()


def test_the_demo_says_that_the_queue_is_paused(capsys: Capture) -> None:
    assert run(["queue", "pause"]) == 0
    assert run(["demo"]) == 4
    assert "orch queue resume" in capsys.readouterr().err


def test_gc_forgets_workers_that_are_gone(engine: Engine, capsys: Capture) -> None:
    for name in ("w1", "w2", "w3"):
        report(engine, name)
    registry.sign_off(engine, "w1")
    with transaction(engine) as session:
        session.execute(update(WorkerRow).where(WorkerRow.name == "w1").values(ended_at=db_now() - 99))
    silence(engine, "w2")
    for arguments in (["--dry-run", "--older-than", "9s"], ["--yes"]):
        assert run(["gc", *arguments]) == 0
        assert len(results.registered_workers(engine, ended=True)) == 3
    capsys.readouterr()
    assert run(["gc", "--yes", "--older-than", "9s"]) == 0
    assert "2 workers that ended or fell silent long ago forgotten" in capsys.readouterr().err
    assert [row.name for row in results.registered_workers(engine, ended=True)] == ["w3"]
