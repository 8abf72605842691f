"""Compile the C files beside this one for this processor, once, into one library, and load it."""

import ctypes
import hashlib
import platform
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from orchestrator.processes.c_compiler import NAMES, c_compiler, loading_fault

SOURCES = Path(__file__).parent
"""The folder of the C files and their headers."""
_FLAGS = (
    "-std=gnu11", "-O3", "-march=native", "-fPIC",
    # A sum may be taken in the order that fills a vector register; NaN and infinity keep their meaning.
    "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math", "-fno-math-errno",
)  # fmt: skip
_THREADS = "-fopenmp"
"""Of GNU's compilers: torch's OpenMP is GNU's, and clang would call another one. Without it a kernel has one thread."""
_SECONDS = 120.0
_PROCESSOR = Path("/proc/cpuinfo")
_WORK = ".building-"
_begun: dict[Path, Future[Path]] = {}
"""By folder: what is compiled beside something else."""


class NoLibrary(Exception):
    """There is no compiled library; the message says why."""


class _Failed(Exception):
    """The compiler did not do it; the message is what it said."""


def begin(folder: Path) -> None:
    """Begin to compile the library where it is not there: `compiled` waits for it, and says why it cannot be."""
    _begun[folder] = ThreadPoolExecutor(1, "compiler").submit(_built, folder)


def compiled(folder: Path) -> ctypes.CDLL:
    """Return the library from the folder, compiled now if it is not there.

    The file's name tells source, flags, compiler and processor: a folder may be shared by machines that differ.

    Raises:
        NoLibrary: no compiler was found, or the library cannot be built or loaded.
    """
    try:
        begun = _begun.pop(folder, None)
        path = begun.result() if begun else _built(folder)
        with suppress(OSError):
            return ctypes.CDLL(str(path))
        return ctypes.CDLL(str(_built(folder, anew=True)))  # it was damaged
    except (OSError, subprocess.TimeoutExpired, _Failed) as error:
        raise NoLibrary(f"the kernels in C could not be compiled and loaded: {error}") from error


def _built(folder: Path, *, anew: bool = False) -> Path:
    command = c_compiler()
    if command is None:
        raise NoLibrary(f"no C compiler was found ({', '.join(NAMES)})")
    if fault := loading_fault(folder):  # it would be compiled at every start, and never loaded
        raise NoLibrary(fault)
    version = _run([*command, "--version"])
    flags = [*_FLAGS] if "clang" in version else [*_FLAGS, _THREADS]
    path = folder / f"kernels-{_digest(*flags, version)}.so"
    if anew or not path.exists():
        _build(command, flags, path)
    return path


def _digest(*how: str) -> str:
    known = _PROCESSOR.exists() and [line for line in _PROCESSOR.read_text().splitlines() if line.startswith("flags")]
    processor = known[0] if known else platform.processor()
    sources = [path.read_text() for path in sorted(SOURCES.glob("*.[ch]"))]
    parts = (*sources, *how, platform.machine(), processor)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise _Failed(next((line for line in lines if "error:" in line), lines[0]))
    return done.stdout


def _build(command: list[str], flags: list[str], path: Path) -> None:
    """Compile, and rename what is whole.

    OpenMP is not linked: its functions are those of the library that torch has loaded, so that there is one set of
    threads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_WORK) as work:
        made, library = [], Path(work, "kernels.so")
        for source in sorted(SOURCES.glob("*.c")):
            made.append(str(Path(work, f"{source.stem}.o")))
            _run([*command, *flags, "-c", str(source), "-o", made[-1]])
        _run([*command, "-shared", *made, "-o", str(library)])
        library.replace(path)


def _remove_left(folder: Path) -> None:
    """Remove what processes that were killed have left."""
    for left in folder.glob(f"{_WORK}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 2 * _SECONDS:
                shutil.rmtree(left)
