"""`orch doctor`: is everything in order, and if not, what to do."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli import terminal
from orchestrator.cli.commands.doctor_checks import (
    Finding,
    check_broker,
    check_clock,
    check_database,
    check_tracking,
    check_workers,
)
from orchestrator.cli.python_process import EXAMPLES
from orchestrator.errors import OrchError

if TYPE_CHECKING:
    from orchestrator.settings import Settings

PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "sqlalchemy",
    "alembic",
    "celery",
    "redis",
    "psycopg",
    "mlflow",
    "safetensors",
)
LOW_SPACE, NO_SPACE = 5e9, 2e8
_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}
_PROBE = """
import torch
if torch.cuda.is_available():
    found = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    print(torch.cuda.device_count(), f"torch {torch.__version__}, {found}")
else:
    print(0, f"torch {torch.__version__}, CPU with {torch.get_num_threads()} threads")
"""


@click.command()
@click.option("-o", "--output", type=click.Choice(["json"]), help="Print for a program instead of a person.")
@click.pass_context
def doctor(ctx: click.Context, *, output: str | None) -> None:
    """Check that everything orch needs is in order; exit code 1 if something is not."""
    findings = []
    for finding in _examine():
        findings.append(finding)
        if not output:
            mark = click.style(f"{finding.level:<4}", fg=_COLOURS[finding.level], bold=True)
            terminal.echo(f"{mark}  {finding.name:<9} {finding.text}")
            if finding.hint:
                terminal.echo(f"{'':16}{finding.hint}")
    if output:
        terminal.echo_json(terminal.envelope("doctor", (finding._asdict() for finding in findings)))
    ctx.exit(1 if any(finding.level == "FAIL" for finding in findings) else 0)


def _examine() -> Iterator[Finding]:
    yield _python()
    yield _packages()
    try:
        from orchestrator.settings import load

        settings = load()
    except OrchError as error:
        yield Finding("FAIL", "settings", error.message, error.hint)
        return
    checks: tuple[Callable[[Settings], Finding], ...] = (
        _settings, _folder, _artifacts, _space, check_database, check_clock, check_workers, check_broker,
        check_tracking, _subject, _device,
    )  # fmt: skip
    for check in checks:
        yield check(settings)


def _python() -> Finding:
    return Finding("OK", "python", f"{sys.version.split()[0]} at {sys.executable}")


def _packages() -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    missing, found = [], []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return Finding("FAIL", "packages", f"missing: {', '.join(missing)}", "pip install -e . installs them.")
    return Finding("OK", "packages", ", ".join(found))


def _settings(settings: "Settings") -> Finding:
    mode = "embedded: SQLite, one host" if settings.embedded else "service"
    lone = settings.broker_url and settings.embedded
    hint = "A broker wakes workers of other hosts, which cannot reach SQLite: set database_url too, or no broker_url."
    return Finding("WARN" if lone else "OK", "settings", mode, hint if lone else "")


def _folder(settings: "Settings") -> Finding:
    hint = "Set ORCH_HOME, or home in orch.toml, to a folder that may be written."
    return _writable("folder", settings.home, hint)


def _artifacts(settings: "Settings") -> Finding:
    hint = "Results and checkpoints go there: check the owner and mode of the folder, and what is mounted there."
    return _writable("artifacts", settings.artifacts_folder, hint)


def _writable(name: str, folder: Path, hint: str) -> Finding:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("FAIL", name, f"{folder}: {error.strerror}", hint)
    return Finding("OK", name, f"{folder} may be written")


def _space(settings: "Settings") -> Finding:
    try:
        free = shutil.disk_usage(settings.home).free
    except OSError as error:
        return Finding("FAIL", "disk", f"{settings.home}: {error.strerror}")
    level = "FAIL" if free < NO_SPACE else "WARN" if free < LOW_SPACE else "OK"
    return Finding(
        level, "disk", f"{free / 1e9:.1f} GB free", "" if level == "OK" else "Checkpoints and tokens need room."
    )


def _subject(settings: "Settings") -> Finding:
    weights = EXAMPLES / "subject" / "model.safetensors"
    if weights.is_file():
        return Finding("OK", "subject", f"the language model that ships is in {weights.parent}")
    return Finding("WARN", "subject", f"{weights} is not there", "orch demo needs a whole checkout of the repository.")


def _device(settings: "Settings") -> Finding:
    """Ask torch in a process of its own: it takes seconds to load, and may fail in ways that take the process along."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("FAIL", "device", "torch did not load within two minutes", "Is the machine overloaded?")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding(
            "FAIL", "device", f"torch does not load: {last}", "Install it anew: https://pytorch.org/get-started"
        )
    gpus, _, text = done.stdout.strip().partition(" ")
    wanted = int(settings.device.partition(":")[2] or 0) + 1 if settings.device.startswith("cuda") else 0
    if int(gpus) < wanted:
        return Finding(
            "FAIL", "device", f"{text}, but the setting is {settings.device}", 'Set device = "auto" or "cpu".'
        )
    return Finding("OK", "device", text)
