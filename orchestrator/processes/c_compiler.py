"""The C compiler of this machine: kernels for a CPU are compiled by it."""

import os
import shlex
import shutil

NAMES = ("cc", "gcc", "clang")


def c_compiler() -> list[str] | None:
    """Return the command of the environment's CC, else of the first of NAMES that is installed."""
    if wanted := shlex.split(os.environ.get("CC", "")):
        return wanted
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return None if found is None else [found]
