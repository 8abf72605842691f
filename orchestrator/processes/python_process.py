"""Commands and environment to run a module of this project by the same Python, whatever the working folder."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module; a folder of that name where one stands is not taken for it."""
    return [sys.executable, "-P", "-m", module, *arguments]


def python_environment() -> dict[str, str]:
    """Return the environment in which our own modules are found."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
