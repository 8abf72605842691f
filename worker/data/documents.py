"""The text a subject reads: documents of files, a data set or Python's own source, in pieces of bounded length."""

import hashlib
import io
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from orchestrator.config.job import STANDARD_LIBRARY, DataConfig
from orchestrator.errors import ConfigError, SubjectError
from worker.checked_folder import sha256_of_file
from worker.data.standard_library import standard_library_documents
from worker.subject import hub

SUFFIXES = (".txt", ".jsonl", ".parquet")
SEPARATOR = "<|endoftext|>"
"""At the end of a line it ends a document, in any kind of file."""
PIECE_CHARACTERS = 65_536
"""A longer document is passed on in pieces."""


class Piece(NamedTuple):
    """A stretch of a document."""

    text: str
    ends: bool
    """Whether the document ends with it."""


@dataclass(frozen=True)
class Source:
    """Text that can be read any number of times, in the same order."""

    identity: dict[str, Any]
    """What decides the text, in values that JSON keeps."""
    pieces: Callable[[], Iterator[Piece]]
    """Reads it from its beginning."""


def open_source(config: DataConfig) -> Source:
    """Return the text a config names.

    Raises:
        ConfigError: there is no such file, data set, split or column.
        SubjectError: it cannot be read.
        MachineError: the hub is out of reach, or the disk full.
    """
    if config.source == STANDARD_LIBRARY:
        identity = {"kind": STANDARD_LIBRARY, "python": platform.python_version(), "sha256": _standard_library_sha256()}
        return Source(identity, lambda: _pieces(_standard_library()))
    if _is_local(config.source):
        files = _files(config.source)
        found = [{"kind": f.suffix, "sha256": sha256_of_file(f)} for f in files]
        column = config.text_column if any(f.suffix != ".txt" for f in files) else None
        return Source({"files": found, "column": column}, lambda: _read_files(files, config.text_column))
    return _dataset(config)


def _pieces(documents: Iterable[str]) -> Iterator[Piece]:
    for text in documents:
        if len(text) <= PIECE_CHARACTERS and SEPARATOR not in text:
            if text.strip():
                yield Piece(text, True)
        else:
            yield from _split(io.StringIO(text))


def _split(file: TextIO) -> Iterator[Piece]:
    """Yield a file's documents in pieces: a document ends at a separator or with the file."""
    parts: list[str] = []
    size = 0
    has_begun = False
    for line in iter(partial(file.readline, PIECE_CHARACTERS), ""):
        kept = line.rstrip().removesuffix(SEPARATOR)
        ends = kept != line.rstrip()
        parts.append(kept if ends else line)
        size += len(line)
        if ends or size >= PIECE_CHARACTERS:
            text = "".join(parts)
            text = text.rstrip("\n") if ends else text
            if text.strip() or has_begun:
                yield Piece(text, ends)
            parts, size, has_begun = [], 0, not ends
    text = "".join(parts)
    if text.strip() or has_begun:
        yield Piece(text, True)


def _standard_library() -> Iterator[str]:
    try:
        yield from standard_library_documents()
    except FileNotFoundError as error:
        raise SubjectError(
            str(error), hint="Give data.source a file or a data set: this Python has no sources."
        ) from None


def _standard_library_sha256() -> str:
    digest = hashlib.sha256()
    for text in _standard_library():
        digest.update(text.encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def _is_local(source: str) -> bool:
    return (
        source.startswith((".", "/", "~"))
        or source.endswith(SUFFIXES)
        or any(sign in source for sign in "*?[")
        or Path(source).exists()
    )


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.suffix in SUFFIXES]
    else:
        found = [path] if path.is_file() else list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    files = sorted(p.resolve() for p in found if p.is_file())
    unknown = [p for p in files if p.suffix not in SUFFIXES]
    hint = f"Give a path, a folder or a glob of {', '.join(SUFFIXES)} files."
    if unknown:
        raise ConfigError(f"data.source: {unknown[0].name} is not text, JSON lines or Parquet", hint=hint)
    if not files:
        raise ConfigError(f"data.source: no file {source}", hint=hint)
    return files


def _read_files(files: list[Path], column: str) -> Iterator[Piece]:
    readers = {".jsonl": _json_lines, ".parquet": _parquet}
    for path in files:
        if path.suffix == ".txt":
            yield from _text(path)
        else:
            yield from _pieces(readers[path.suffix](path, column))


def _text(path: Path) -> Iterator[Piece]:
    with path.open(encoding="utf-8") as file:
        try:
            yield from _split(file)
        except UnicodeDecodeError as error:
            raise SubjectError(f"{path} is not UTF-8: {error.reason}", hint="Convert the file to UTF-8.") from None


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise SubjectError(
                    f"{path}, line {number}: not JSON ({error})", hint="Correct or remove the line."
                ) from None
            yield _text_of(row if isinstance(row, dict) else {}, column, f"{path}, line {number}")


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise _no_text(names, column, str(path))
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for row in batch.to_pylist():
                    yield _text_of(row, column, str(path))
    except pyarrow.ArrowException as error:
        raise SubjectError(f"{path} cannot be read as Parquet: {error}", hint="Check the file.") from None


def _text_of(row: dict[str, Any], column: str, where: str) -> str:
    if column in row and row[column] is None:
        return ""
    value = row.get(column)
    if not isinstance(value, str):
        raise _no_text(row, column, where)
    return value


def _no_text(columns: Iterable[str], column: str, where: str) -> ConfigError:
    return ConfigError(
        f"data.text_column: {where} has no text under {column!r}",
        hint=f"Its columns: {', '.join(map(str, columns)) or 'none'}.",
    )


def _dataset(config: DataConfig) -> Source:
    import datasets
    from datasets.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    online = hub.is_reachable()
    if not online and not (Path(datasets.config.HF_DATASETS_CACHE) / config.source.replace("/", "___")).is_dir():
        raise hub.out_of_reach(
            f"data.source: {config.source!r} is neither a file nor a cached data set, and the hub cannot be reached",
            "Give local .txt, .jsonl or .parquet files, python:stdlib, or check the id and the network.",
        )
    try:
        builder = datasets.load_dataset_builder(config.source, config.name, revision=config.revision)
    except (OSError, ValueError) as error:
        raise hub.refused(f"data set {config.source!r}", error, "Check the id, name and revision.") from None
    identity = {"dataset": config.source, "name": builder.config.name, "hash": builder.hash, "split": config.split}
    identity |= {"revision": config.revision, "column": config.text_column}
    # A limited number of tokens is streamed; a whole data set is downloaded first, and kept in the hub's cache.
    streamed = online and config.max_tokens is not None and "[" not in config.split
    return Source(identity, lambda: _pieces(_rows(builder, config, streamed=streamed)))


def _rows(builder: Any, config: DataConfig, *, streamed: bool) -> Iterator[str]:
    try:
        if streamed:
            rows = builder.as_streaming_dataset(split=config.split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=config.split)
        for row in rows:
            yield _text_of(row, config.text_column, f"data set {config.source}")
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        raise hub.refused(f"data set {config.source!r}", error, "Check the split and the network.") from None
