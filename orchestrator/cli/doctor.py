"""`orch doctor`: is everything in order, and if not, what to do."""

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

import click

from orchestrator.cli import terminal
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


class Finding(NamedTuple):
    """What one check found."""

    level: str
    """OK, WARN or FAIL."""
    name: str
    text: str
    hint: str = ""


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
        _settings, _folder, _space, _database, _broker, _tracking, _subject, _device,
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
    try:
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home):
            pass
    except OSError as error:
        hint = "Set ORCH_HOME, or home in orch.toml, to a folder that may be written."
        return Finding("FAIL", "folder", f"{settings.home}: {error.strerror}", hint)
    return Finding("OK", "folder", f"{settings.home} may be written")


def _space(settings: "Settings") -> Finding:
    try:
        free = shutil.disk_usage(settings.home).free
    except OSError as error:
        return Finding("FAIL", "disk", f"{settings.home}: {error.strerror}")
    level = "FAIL" if free < NO_SPACE else "WARN" if free < LOW_SPACE else "OK"
    return Finding(
        level, "disk", f"{free / 1e9:.1f} GB free", "" if level == "OK" else "Checkpoints and tokens need room."
    )


def _database(settings: "Settings") -> Finding:
    from orchestrator.database.schema import HEAD, current
    from orchestrator.settings import mask

    try:
        found = current(settings)
    except OrchError as error:
        return Finding("FAIL", "database", error.message, error.hint)
    if found == HEAD:
        return Finding("OK", "database", f"{mask(settings.database)}, schema {found}")
    text = f"{mask(settings.database)} has {f'schema {found}' if found else 'no schema yet'}, {HEAD} is needed"
    if settings.embedded:
        return Finding("OK", "database", text, "It is made when it is first used.")
    return Finding("FAIL", "database", text, "Run: orch db upgrade")


def _broker(settings: "Settings") -> Finding:
    if not settings.broker_url:
        return Finding("OK", "broker", f"none: workers look at the queue every {settings.poll:g} s")
    from redis import Redis
    from redis.exceptions import RedisError

    from orchestrator.settings import mask

    try:
        client = Redis.from_url(settings.broker_url, socket_connect_timeout=3, socket_timeout=3)
        with client:
            client.ping()
    except (RedisError, OSError, ValueError) as error:
        hint = f"Jobs flow all the same: workers look every {settings.poll:g} s. Is Redis up, and broker_url right?"
        return Finding("WARN", "broker", f"{mask(settings.broker_url)}: {mask(str(error))}", hint)
    return Finding("OK", "broker", f"{mask(settings.broker_url)} answers")


def _tracking(settings: "Settings") -> Finding:
    from orchestrator.settings import mask

    address = mask(settings.tracking)
    if not settings.tracking.startswith(("http://", "https://")):
        return Finding("OK", "tracking", f"{address}, shown by: orch ui")
    try:
        urllib.request.urlopen(_health(settings.tracking), timeout=5).close()
    except (urllib.error.URLError, OSError, ValueError, HTTPException) as error:
        hint = "Training goes on without it; orch tracking sync makes up for it later. Is the MLflow server up?"
        return Finding("WARN", "tracking", f"{address}: {mask(str(error))}", hint)
    return Finding("OK", "tracking", f"{address} answers")


def _health(url: str) -> urllib.request.Request:
    """Return the question whether a server is up; its name and password go into a header, as urllib wants them."""
    place = urlsplit(url)
    who, _, host = place.netloc.rpartition("@")
    asked = urllib.request.Request(f"{place._replace(netloc=host).geturl().rstrip('/')}/health")
    if who:
        asked.add_header("Authorization", f"Basic {b64encode(unquote(who).encode()).decode()}")
    return asked


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
