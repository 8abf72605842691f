"""Files that are read whole, up to a bound: what was put in their place must not fill the memory, or never end."""

import os
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import ConfigError

MB = 1_000_000
_SHOWN = 200
MOST_OF_A_CONFIG = 16 * MB
"""Bytes of a file that people or programs write by hand: a sweep, its base, settings, a model's config, a manifest."""


def read_text(path: Path, *, what: str, most: int = MOST_OF_A_CONFIG) -> str:
    """Return the text of a file, UTF-8; `what` says in the error what it should have been.

    Raises:
        ConfigError: it is larger than `most` bytes.
        OSError, UnicodeDecodeError: it cannot be read, or is not text.
    """
    with path.open("rb") as file:
        return read(file, str(path), what=what, most=most).decode("utf-8")


def why_unread(error: Exception) -> str:
    """Return in one line why a file could not be read: of one that is not there, that it is not, and its path."""
    if isinstance(error, FileNotFoundError | NotADirectoryError) and error.filename is not None:
        return f"there is no file {os.fsdecode(error.filename)}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {(error.strerror or type(error).__name__).lower()}"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return str(error).partition("\n")[0][:_SHOWN] or type(error).__name__


def read(file: BinaryIO, name: str, *, what: str, most: int = MOST_OF_A_CONFIG) -> bytes:
    """Return all of an open file, which may be a pipe.

    Raises:
        ConfigError: it is larger than `most` bytes.
    """
    content = file.read(most + 1)
    if len(content) > most:
        raise ConfigError(
            f"{name} is larger than {most / MB:g} MB, the most that is read of {what}", hint="Is it the right file?"
        )
    return content
