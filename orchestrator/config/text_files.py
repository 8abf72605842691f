"""Which files a text is read from: a path, a folder or a glob, as a shell would expand it. Reads names alone."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import ConfigError

SUFFIXES = (".txt", ".jsonl", ".parquet")
_HINT = f"Give a path, a folder or a glob of {', '.join(SUFFIXES)} files."


def is_local(source: str) -> bool:
    """Say whether `data.source` names files, and not a data set."""
    return (
        source.startswith((".", "/", "~"))
        or source.lower().endswith(SUFFIXES)
        or ("://" not in source and any(sign in source for sign in "*?["))
        or Path(source).exists()
    )


def in_folder(path: str, folder: Path | None) -> Path:
    """Return a path as it is read in a file of some folder: from there if it is there, else from the one one is in."""
    place = Path(path).expanduser()
    return folder / place if folder is not None and (folder / place).exists() else place


def text_files(source: str) -> list[Path]:
    """Return the files of a text, each once, in the order of their names; none is hidden, unless it is named.

    A link is judged and ordered by its own name: its target may be called otherwise, as in the cache of a hub.

    Raises:
        ConfigError: there is none, or one that is no text.
    """
    found: dict[Path, Path] = {}
    for file in sorted(listed(source)):
        if not file.exists():
            raise ConfigError(f"data.source: {file} is a link to a file that is gone", hint="Take the link away.")
        if file.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"data.source: {file.name} is not text, JSON lines or Parquet", hint=_HINT)
        found.setdefault(file.resolve(), file)
    if not found:
        raise ConfigError(f"data.source: no file {source}", hint=_HINT)
    return [*found.values()]


def listed(source: str) -> Iterator[Path]:
    """Yield the files that a source names, as they are found: of a folder those that are text, also in folders below.

    Names that begin with a dot are left out, of files and of folders, as a shell does: editors and version control
    keep copies of a text there, and a copy would be trained on that should be held out.
    """
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        yield from _below(path, {path.resolve()})
    elif path.is_file() or path.is_symlink():
        yield path
    else:
        # Path.glob would give hidden names, too.
        matches = (Path(name) for name in glob.iglob(str(path), recursive=True))  # noqa: PTH207
        yield from (match for match in matches if not match.is_dir())


def _below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the text files of a folder and of those below it; a link that leads back to a folder is not followed."""
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        path = Path(entry.path)
        if not entry.is_dir():
            if path.suffix.lower() in SUFFIXES:
                yield path
        elif path.resolve() not in seen:
            seen.add(path.resolve())
            yield from _below(path, seen)
