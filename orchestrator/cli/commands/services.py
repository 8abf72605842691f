"""`orch ui, tracking`: programs of their own, started from here."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.python_process import python_command, python_environment
from orchestrator.cli.selection import database
from orchestrator.errors import ConfigError, NotFound, OrchError, StorageError

if TYPE_CHECKING:
    from orchestrator.settings import Settings

HOST = "127.0.0.1"
STORES = ("sqlite:", "postgresql:", "postgresql+", "mysql:", "mysql+", "mssql:", "mssql+")
START_SECONDS = 90.0
STOP_SECONDS = 10.0
SHIP_SECONDS = 120.0


@click.group()
def tracking() -> None:
    """Rebuild what MLflow shows."""


@tracking.command()
@click.argument("sweep", required=False)
@click.pass_context
def sync(ctx: click.Context, *, sweep: str | None) -> None:
    """Bring MLflow up to date with the database: one SWEEP, or all of them."""
    from orchestrator import results

    with database() as (_, engine):
        names = [found.name for found in results.sweeps(engine)]
        if sweep is not None and sweep not in names:
            results.find(engine, [sweep])
            raise NotFound(f"there is no sweep {sweep!r}", hint=f"Sweeps: {', '.join(names) or 'none yet'}")
    for name in names if sweep is None else [sweep]:
        code = subprocess.run(python_command("worker", "sync", name), env=python_environment(), check=False).returncode
        if code:
            ctx.exit(code)


def ship(sweeps: Sequence[str]) -> None:
    """Show the fits of sweeps in MLflow; where it is out of reach, warn and go on."""
    for sweep in dict.fromkeys(sweeps):
        command = python_command("worker", "sync", sweep, "--fits")
        try:
            done = subprocess.run(
                command, env=python_environment(), check=False, capture_output=True, text=True, timeout=SHIP_SECONDS
            )
            why = (done.stderr.strip().splitlines() or [""])[0].removeprefix("error: ") if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"it took more than {SHIP_SECONDS:g} s"
        if why:
            terminal.warn(f"MLflow lacks the newest fits of {sweep}: {why}", f"Later: orch tracking sync {sweep}")


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port on this machine.")
@click.option("--browser/--no-browser", default=True, help="Open a browser window.")
def ui(*, port: int, browser: bool) -> None:
    """Open MLflow's pages on this machine, until Ctrl-C; a tracking server elsewhere is opened where it is."""
    from orchestrator.settings import load, mask

    settings = load()
    if settings.tracking.startswith(("http://", "https://")):
        terminal.echo(mask(settings.tracking))
        if browser:
            webbrowser.open(settings.tracking)
        return
    _check_store(settings)
    _check_port(port)
    _serve(settings, port, browser=browser)


def _check_store(settings: "Settings") -> None:
    from orchestrator.settings import mask

    if not settings.tracking.startswith(STORES):
        raise ConfigError(
            f"tracking_url {mask(settings.tracking)!r} is neither a server nor a database",
            hint="Such as http://host:5000, or postgresql+psycopg://user:password@host/mlflow",
        )
    file = settings.home / "mlflow.db"
    if not settings.tracking_url and not file.exists():
        raise NotFound(
            f"nothing is tracked yet: {file} is not there",
            hint="A worker makes it: orch worker, or orch demo. What is in the database already: orch tracking sync",
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            hint = (
                f"Perhaps `orch ui` runs already: http://{HOST}:{port}. Another port: orch ui --port {port % 65535 + 1}"
            )
            raise StorageError(f"port {port} cannot be used: {error.strerror}", hint=hint) from None


def _serve(settings: "Settings", port: int, *, browser: bool) -> None:
    address = f"http://{HOST}:{port}"
    log = settings.home / "logs" / "ui.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = python_command(
        "mlflow", "server",
        "--default-artifact-root", (settings.home / "mlartifacts").as_uri(), "--no-serve-artifacts",
        "--host", HOST, "--port", str(port), "--workers", "1",
    )  # fmt: skip
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    store = {"MLFLOW_BACKEND_STORE_URI": settings.tracking}  # not a flag: every user of the machine can read those
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | quiet | store
    for number in (signal.SIGTERM, signal.SIGHUP):  # the server has a session of its own, and ends with us all the same
        signal.signal(number, signal.default_int_handler)
    with log.open("ab") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        terminal.note(f"Starting MLflow (log: {log}) ...")
        _await(server, address, log=str(log))
        terminal.echo(address)
        terminal.note("Ctrl-C ends it.")
        if browser:
            webbrowser.open(address)
        code = server.wait()
        raise OrchError(f"MLflow ended by itself, with exit status {code}", hint=f"Its log: {log}")
    finally:
        _end(server)


def _await(server: "subprocess.Popen[bytes]", address: str, *, log: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise OrchError(f"MLflow did not start: exit status {server.returncode}", hint=f"Its log: {log}")
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise OrchError(f"MLflow did not answer within {START_SECONDS:g} s", hint=f"Its log: {log}")


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End the server and all it started: they share a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(STOP_SECONDS)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    server.wait()
