"""Compile `kernels.c` for this processor, once, and load it."""

import ctypes
import hashlib
import platform
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from orchestrator.processes.c_compiler import NAMES, c_compiler

SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-fPIC",
    # A sum may be taken in the order that fills a vector register; NaN and infinity keep their meaning.
    "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno",
)  # fmt: skip
_THREADS = "-fopenmp"
"""Of GNU's compilers: torch's OpenMP is GNU's, and clang would call another one. Without it a kernel has one thread."""
_SECONDS = 120.0
_PROCESSOR = Path("/proc/cpuinfo")


class NoLibrary(Exception):
    """There is no compiled library; the message says why."""


def compiled(folder: Path) -> ctypes.CDLL:
    """Return the library from the folder, compiled now if it is not there.

    The file's name tells source, flags, compiler and processor: a folder may be shared by machines that differ.

    Raises:
        NoLibrary: no compiler was found, or the library cannot be built or loaded.
    """
    command = c_compiler()
    if command is None:
        raise NoLibrary(f"no C compiler was found ({', '.join(NAMES)})")
    try:
        version = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=True)
        flags = [*_FLAGS] if "clang" in version.stdout else [*_FLAGS, _THREADS]
        path = folder / f"kernels-{_digest(*flags, version.stdout)}.so"
        if path.exists():
            with suppress(OSError):  # damaged: built anew
                return ctypes.CDLL(str(path))
        _build(command, flags, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().partition("\n")[0]
        raise NoLibrary(f"{SOURCE.name} could not be compiled and loaded: {said}") from error


def _digest(*how: str) -> str:
    known = _PROCESSOR.exists() and [line for line in _PROCESSOR.read_text().splitlines() if line.startswith("flags")]
    processor = known[0] if known else platform.processor()
    parts = (SOURCE.read_text(), *how, platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _build(command: list[str], flags: list[str], path: Path) -> None:
    """Compile, and rename what is whole.

    OpenMP is not linked: its functions are those of the library that torch has loaded, so that there is one set of
    threads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        made, library = Path(work, "kernels.o"), Path(work, "kernels.so")
        steps = ([*flags, "-c", str(SOURCE), "-o", str(made)], ["-shared", str(made), "-o", str(library)])
        for step in steps:
            subprocess.run([*command, *step], capture_output=True, text=True, timeout=_SECONDS, check=True)
        library.replace(path)
