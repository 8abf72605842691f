"""Check this machine: Python, packages, settings, folders, disk, the shipped subject, the device."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from orchestrator.diagnosis.finding import Finding
from orchestrator.processes.c_compiler import compiler_fault, loading_fault
from orchestrator.processes.python_process import EXAMPLES
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
PROBE_BYTES = 1 << 16
_PROBE = """
import torch
if torch.cuda.is_available():
    found = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    print(torch.cuda.device_count(), f"torch {torch.__version__}, {found}")
else:
    print(0, f"torch {torch.__version__}, CPU with {torch.get_num_threads()} threads")
"""


def check_python() -> Finding:
    """Name the Python that runs this."""
    return Finding("OK", "python", f"{sys.version.split()[0]} at {sys.executable}")


def check_packages() -> Finding:
    """Look whether the packages orch needs are installed."""
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


def check_settings(settings: Settings) -> Finding:
    """Look whether the settings go together."""
    mode = "embedded: SQLite, one host" if settings.embedded else "service"
    is_unreachable = settings.broker_url and settings.embedded
    hint = "A broker wakes workers of other hosts, which cannot reach SQLite: set database_url too, or no broker_url."
    return Finding("WARN" if is_unreachable else "OK", "settings", mode, hint if is_unreachable else "")


def check_folder(settings: Settings) -> Finding:
    """Look whether the data folder may be written."""
    hint = "Set ORCH_HOME, or home in orch.toml, to a folder that may be written."
    return _writable("folder", settings.home, hint)


def check_artifacts(settings: Settings) -> Finding:
    """Look whether the folder of checkpoints and results may be written."""
    hint = "Results and checkpoints go there: check the owner and mode of the folder, and what is mounted there."
    return _writable("artifacts", settings.artifacts_folder, hint)


def check_logs(settings: Settings) -> Finding:
    """Look whether the folder of logs may be written; without it jobs are trained all the same."""
    found = _writable("logs", settings.logs_folder, "")
    hint = "Jobs are trained all the same, but what their trainers say is lost."
    return found if found.level == "OK" else found._replace(level="WARN", hint=hint)


def _writable(name: str, folder: Path, hint: str) -> Finding:
    """Write a file as a trainer would: on a full disk a file can still be made, and not be filled."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding("FAIL", name, f"{folder}: {error.strerror}", hint)
    return Finding("OK", name, f"{folder} may be written")


def check_space(settings: Settings) -> Finding:
    """Look whether the disks of the data folder and of the artifacts have room."""
    free: dict[int, tuple[int, Path]] = {}
    for folder in (settings.home, settings.artifacts_folder):
        try:
            there = next(place for place in (folder, *folder.parents) if place.exists())
            free[there.stat().st_dev] = shutil.disk_usage(there).free, folder
        except OSError as error:
            return Finding("FAIL", "disk", f"{folder}: {error.strerror}")
    least = min(free.values())[0]
    told = [found for found in free.values() if least >= LOW_SPACE or found[0] < LOW_SPACE]
    text = ", ".join(f"{n / 1e9:.1f} GB free" + (f" for {folder}" if len(free) > 1 else "") for n, folder in told)
    if least >= LOW_SPACE:
        return Finding("OK", "disk", text)
    return Finding("FAIL" if least < NO_SPACE else "WARN", "disk", text, "Checkpoints and tokens need room.")


def check_subject(settings: Settings) -> Finding:
    """Look whether the language model that ships is there."""
    weights = EXAMPLES / "subject" / "model.safetensors"
    if weights.is_file():
        return Finding("OK", "subject", f"the language model that ships is in {weights.parent}")
    return Finding("WARN", "subject", f"{weights} is not there", "orch demo needs a whole checkout of the repository.")


def check_device(settings: Settings) -> Finding:
    """Look for GPUs with torch, in a process of its own: loading it takes seconds, and may end the process."""
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
    if not int(gpus) and settings.compile != "off":
        fault, repair = compiler_fault()
        if not fault:
            fault, repair = loading_fault(settings.home), "Mount it without noexec, or set home to another folder."
        if fault:
            return Finding("WARN", "device", f"{text}; {fault}, so a step takes two to four times as long", repair)
    return Finding("OK", "device", text)
