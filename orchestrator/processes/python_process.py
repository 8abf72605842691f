"""Commands, environment and log to run a module of this project by the same Python, whatever the working folder."""

import os
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module; a folder of that name where one stands is not taken for it."""
    return [sys.executable, "-P", "-m", module, *arguments]


def python_environment() -> dict[str, str]:
    """Return the environment in which our own modules are found."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def open_log(log: Path) -> IO[bytes]:
    """Open the log of a process to append to it; where that cannot be, what would go there is lost."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")
