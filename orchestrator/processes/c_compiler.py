"""The C compiler of this machine: kernels for a CPU are compiled by it."""

import os
import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

_HEADERS = "#include <math.h>\n#include <stdint.h>\n"
_INSTALL = "Install one: apt install gcc libc6-dev, or xcode-select --install on a Mac."
_SECONDS = 30.0
NAMES = ("cc", "gcc", "clang")


def c_compiler() -> list[str] | None:
    """Return the command of the environment's CC, if there is such a program, else of the first of NAMES."""
    with suppress(ValueError):  # a quotation without an end
        wanted = shlex.split(os.environ.get("CC", ""))
        if wanted and shutil.which(wanted[0]):
            return wanted
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return None if found is None else [found]


def compiler_fault() -> tuple[str, str]:
    """Return why no C can be compiled here, and what to do; both are empty where it can."""
    command = c_compiler()
    if command is None:
        return "no C compiler", _INSTALL
    name = shlex.join(command)
    is_of_cc = command[0] not in map(shutil.which, NAMES)
    repair = "CC names it: correct it, or unset it." if is_of_cc else _INSTALL
    try:
        done = subprocess.run(
            [*command, "-x", "c", "-fsyntax-only", "-"],
            input=_HEADERS, capture_output=True, text=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"the C compiler {name} does not run ({getattr(error, 'strerror', None) or 'it does not end'})", repair
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()), "no message")
        return f"the C compiler {name} compiles nothing ({said})", repair
    return "", ""


def loading_fault(folder: Path) -> str:
    """Return why no compiled program can be loaded from a folder, which may not be there yet; "" where it can."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    is_noexec = os.statvfs(there).f_flag & getattr(os, "ST_NOEXEC", 0)
    return f"{folder} is on a file system mounted noexec" if is_noexec else ""
