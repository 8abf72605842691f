"""`orch doctor` on clock, workers, artifacts and tracking: what is well, and what is not."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.main import run
from orchestrator.database.schema import open_database
from orchestrator.diagnosis import machine, servers
from orchestrator.processes.c_compiler import c_compiler
from orchestrator.settings import Settings
from tests.queue_shorthand import enqueue
from tests.worker_shorthand import report

Capture = pytest.CaptureFixture[str]


def test_doctor_looks_at_clock_workers_and_artifacts(
    sqlite_settings: Settings, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> dict[str, dict[str, str]]:
        assert run(["doctor", "-o", "json"]) in {0, 1}
        return {item["name"]: item for item in json.loads(capsys.readouterr().out)["items"]}

    home = sqlite_settings.home
    engine = open_database(sqlite_settings)
    healthy = found()
    assert [healthy[name]["level"] for name in ("clock", "workers", "artifacts", "tracking")] == ["OK"] * 4
    assert healthy["workers"]["text"] == "none"
    enqueue(engine, 1)
    (home / "artifacts").rmdir()
    (home / "artifacts").write_text("a file in its place")
    (home / "mlflow.db").write_bytes(b"this is no database" * 100)
    monkeypatch.setattr(servers, "time", type("Clock", (), {"time": staticmethod(lambda: 4e9)}))
    ill = found()
    assert (ill["clock"]["level"], "ahead of the database's clock" in ill["clock"]["text"]) == ("WARN", True)
    assert "Leases follow the database's clock alone" in ill["clock"]["hint"]
    report(engine, "gpu-7")
    report(engine, "gpu-7", elapsed=120.0)
    assert found()["clock"]["text"] == "the database's clock was set -120 s within the last day, as gpu-7 saw"
    assert ill["workers"]["text"] == "none, and 1 job queued"
    assert ill["artifacts"]["level"] == "FAIL"
    assert (ill["tracking"]["level"], "not a database" in ill["tracking"]["text"]) == ("WARN", True)
    engine.dispose()


def test_doctor_tries_the_c_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It took what CC named for a compiler, and a compiler without its headers for one that works."""
    broken = tmp_path / "broken-cc"
    broken.write_text("no program")
    broken.chmod(0o755)
    bare = tmp_path / "bare-cc"
    bare.write_text("#!/bin/sh\necho '<stdin>:1:10: fatal error: math.h: No such file or directory' >&2\nexit 1\n")
    bare.chmod(0o755)
    settings = Settings(device="cpu")
    for command, says, hint in (
        (str(broken), f"the C compiler {broken} does not run (Exec format error)", "unset it"),
        (str(bare), "bare-cc compiles nothing (<stdin>:1:10: fatal error: math.h", "unset it"),
    ):
        monkeypatch.setenv("CC", command)
        found = machine.check_device(settings)
        assert found.level == "WARN"
        assert says in found.text
        assert "two to four times as long" in found.text
        assert hint in found.hint
        assert machine.check_device(replace(settings, compile="off")).level == "OK"
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = machine.check_device(settings)
    assert (found.level, "no C compiler" in found.text, "apt install gcc" in found.hint) == ("WARN", True, True)


@pytest.mark.skipif(not hasattr(os, "ST_NOEXEC"), reason="the kernel tells on Linux alone")
@pytest.mark.skipif(c_compiler() is None, reason="no C compiler")
def test_doctor_says_where_no_compiled_program_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mounted:
        f_flag = os.ST_NOEXEC

    monkeypatch.setattr(os, "statvfs", lambda _: Mounted)
    settings = Settings(device="cpu", home=tmp_path / "home")
    found = machine.check_device(settings)
    assert (found.level, f"{tmp_path / 'home'} is on a file system mounted noexec" in found.text) == ("WARN", True)
    assert "without noexec" in found.hint
    assert machine.check_device(replace(settings, compile="off")).level == "OK"


def test_doctor_reaches_a_tracking_store_in_postgres(
    postgres_settings: Settings, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = "postgresql://me:secret@127.0.0.1:1/mlflow"
    for url, level, says in ((postgres_settings.database, "OK", "answers"), (away, "WARN", "orch tracking sync")):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        found = servers.check_tracking(Settings(tracking_url=url))
        assert (found.level, says in found.text + found.hint) == (level, True)
        assert "secret" not in found.text


def test_who_is_lost_is_named_to_the_doctor(sqlite_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.queue import Worker, workers

    engine = open_database(sqlite_settings)
    worker = Worker("w1", "here", 1, "cpu")
    for token, every in (("alive", 10.0), ("lost", -10.0)):
        workers.report(engine, worker, token=token, version="1", every_seconds=every)
    engine.dispose()
    found = servers.check_workers(sqlite_settings)
    assert (found.level, found.text) == ("WARN", "1 idle, 1 lost")
    assert "orch worker list" in found.hint


def test_doctor_names_a_process_that_stands_still_on_the_file(sqlite_settings: Settings) -> None:
    file = sqlite_settings.home / "orch.db"
    program = "import os, signal, sys; held = open(sys.argv[1]); os.kill(os.getpid(), signal.SIGSTOP)"
    holder = subprocess.Popen([sys.executable, "-c", program, str(file)])
    try:
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
        assert servers.check_database(sqlite_settings).text.endswith(f", open in process {holder.pid} (stopped)")
    finally:
        holder.kill()
        holder.wait()
    assert "open in" not in servers.check_database(sqlite_settings).text
