"""The Python standard library as text: a data set that every machine already has."""

import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

# Folders of other people's packages, of tests and their fixtures, and of build output.
_LEFT_OUT_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})
# Tables written out as Python: long, and nothing like what people write.
_LEFT_OUT_FILES = frozenset({"pydoc_data/topics.py", "html/entities.py", "stringprep.py"})
# Written when the interpreter was built; they hold that machine's paths.
_BUILD_PREFIXES = ("_sysconfigdata", "config-")
_CHARACTER_TABLE = "decoding_table = ("
_ONE_IN = 16


def standard_library_documents() -> Iterator[str]:
    """Yield the text of every document, in the order of `standard_library_files`."""
    for _, text in standard_library_files():
        yield text


def standard_library_files(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield (relative path, text) of the standard library's sources, sorted by path.

    Raises: FileNotFoundError where this Python carries no sources (a zipped or stripped one).
    Source: `root`, by default the folder that `sysconfig` calls stdlib.
    """
    folder = root or Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    if not paths:
        raise FileNotFoundError(f"no Python sources under {folder}")
    for path in paths:
        if _is_written_by_people(path):
            text = _read(folder / path)
            if text and _CHARACTER_TABLE not in text:
                yield path, text


def is_held_out(path: str) -> bool:
    """Say whether a document belongs to the one in sixteen kept for evaluation.

    The hash of the path decides: no other file moves it, and every machine agrees.
    """
    digest = hashlib.sha256(path.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _ONE_IN == 0


def _is_written_by_people(path: str) -> bool:
    parts = path.split("/")
    return (
        path not in _LEFT_OUT_FILES
        and _LEFT_OUT_FOLDERS.isdisjoint(parts[:-1])
        and not parts[0].startswith(_BUILD_PREFIXES)
    )


def _read(path: Path) -> str:
    # tokenize.open honours a file's own coding line; what it cannot decode is a fixture.
    try:
        with tokenize.open(path) as source:
            return source.read()
    except (SyntaxError, UnicodeDecodeError):
        return ""
