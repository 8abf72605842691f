"""`orch ui, tracking`: show MLflow's pages, and bring them up to date."""

import signal
import subprocess
import webbrowser
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.selection import database
from orchestrator.errors import NotFound, OrchError
from orchestrator.processes.python_process import python_command, python_environment

if TYPE_CHECKING:
    from orchestrator.settings import Settings

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
            why = (done.stderr.strip().splitlines() or [""])[0].removeprefix("Error: ") if done.returncode else ""
        except subprocess.TimeoutExpired:
            why = f"it took more than {SHIP_SECONDS:g} s"
        if why:
            terminal.warn(f"MLflow lacks the newest fits of {sweep}: {why}", f"Later: orch tracking sync {sweep}")


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Port on this machine.")
@click.option("--browser/--no-browser", default=True, help="Open a browser window.")
def ui(*, port: int, browser: bool) -> None:
    """Open MLflow's pages on this machine, until Ctrl-C; a tracking server elsewhere is opened where it is."""
    from orchestrator.masking import mask
    from orchestrator.settings import load

    settings = load()
    if settings.tracking.startswith(("http://", "https://")):
        terminal.echo(mask(settings.tracking))
        if browser:
            webbrowser.open(settings.tracking)
        return
    _serve(settings, port, browser=browser)


def _serve(settings: "Settings", port: int, *, browser: bool) -> None:
    from orchestrator.processes.mlflow_server import MlflowServer

    server = MlflowServer(settings, port)
    for number in (signal.SIGTERM, signal.SIGHUP):  # the server has a session of its own, and ends with us all the same
        signal.signal(number, signal.default_int_handler)
    with server:
        terminal.note(f"Starting MLflow (log: {server.log}) ...")
        server.wait_until_ready()
        terminal.echo(server.address)
        terminal.note("Ctrl-C ends it.")
        if browser:
            webbrowser.open(server.address)
        code = server.wait()
        raise OrchError(f"MLflow ended by itself, with exit status {code}", hint=f"Its log: {server.log}")
