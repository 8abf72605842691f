"""The C compiler of this machine: kernels for a CPU are compiled by it."""

import os
import shlex
import shutil
from contextlib import suppress

NAMES = ("cc", "gcc", "clang")


def c_compiler() -> list[str] | None:
    """Return the command of the environment's CC, if there is such a program, else of the first of NAMES."""
    with suppress(ValueError):  # a quotation without an end
        wanted = shlex.split(os.environ.get("CC", ""))
        if wanted and shutil.which(wanted[0]):
            return wanted
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return None if found is None else [found]
