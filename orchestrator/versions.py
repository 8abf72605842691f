"""Versions of Python and packages, and the git commit. Nothing here raises: what is not known is left out."""

import platform
import re
from contextlib import suppress
from importlib import metadata
from pathlib import Path

_PACKAGES = ("orch", "torch", "transformers")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_commit(folder: Path = Path(__file__).parents[1]) -> str | None:
    """Return the commit checked out in a folder, read from its .git; None where there is none."""
    git = folder / ".git"
    with suppress(OSError, UnicodeDecodeError):
        if git.is_file():  # a work tree: the file names the folder
            git = folder / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        shared = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
        if name == head:
            return _commit(head)
        for place in (git, shared):
            if (place / name).is_file():
                return _commit((place / name).read_text())
        packed = (shared / "packed-refs").read_text()
        return next((_commit(line) for line in packed.splitlines() if line.endswith(f" {name}")), None)
    return None


def _commit(text: str) -> str | None:
    found = re.match(r"[0-9a-f]{40,64}", text.strip())
    return found[0] if found else None
