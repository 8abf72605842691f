"""The text a subject reads: documents of files, a data set or Python's own source, in pieces of bounded length."""

import hashlib
import io
import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from orchestrator.config.job import STANDARD_LIBRARY, DataConfig
from orchestrator.config.text_files import is_local, text_files
from orchestrator.errors import ConfigError, OrchError, SubjectError, shared_error
from worker.checked_folder import sha256_of_file
from worker.data.hub_datasets import find_dataset
from worker.data.standard_library import standard_library_documents
from worker.subject import hub

SEPARATOR = "<|endoftext|>"
"""At the end of a line it ends a document, in any kind of file."""
PIECE_CHARACTERS = 65_536
"""A longer document is passed on in pieces of about this length, or of up to 16 times it where words do not end."""
CONTEXT_CHARACTERS = 512
_LONGEST_IN_PIECES = 16
_TRIED_IN_CONTEXTS = 4
"""So many contexts more than a piece are read before it is cut: words end in so much text."""
_GAP = re.compile(r"(?<=\w)[ \n](?=\w)")
"""A single space between two words, where a piece ends: tokenizers begin a token there, whatever stands before."""


class Piece(NamedTuple):
    """A stretch of a document, with what surrounds it: what a tokenizer makes of a text depends on that."""

    text: str
    ends: bool
    """Whether the document ends with it."""
    before: str = ""
    """The last CONTEXT_CHARACTERS of the document before it."""
    after: str = ""
    """The first CONTEXT_CHARACTERS of the document after it."""


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
    if is_local(config.source):
        files = text_files(config.source)
        found = [{"kind": f.suffix.lower(), "sha256": sha256_of_file(f)} for f in files]
        column = config.text_column if any(one["kind"] != ".txt" for one in found) else None
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
    size, before, enough = 0, "", _enough()
    for line, is_whole in _lines(file):
        kept = line.rstrip().removesuffix(SEPARATOR)
        ends = is_whole and kept != line.rstrip()
        parts.append(kept if ends else line)
        size += len(line)
        if ends:
            yield from _last("".join(parts).rstrip("\n"), before)
            parts, size, before, enough = [], 0, "", _enough()
        elif size >= enough:
            text = "".join(parts)
            cut = _cut(text)
            if cut:
                yield Piece(text[:cut], False, before, text[cut : cut + CONTEXT_CHARACTERS])
                before = text[max(0, cut - CONTEXT_CHARACTERS) : cut]
            parts, size = [text[cut:]], len(text) - cut
            enough = _enough() if cut else size + PIECE_CHARACTERS
    yield from _last("".join(parts), before)


def _enough() -> int:
    return PIECE_CHARACTERS + _TRIED_IN_CONTEXTS * CONTEXT_CHARACTERS


def _lines(file: TextIO) -> Iterator[tuple[str, bool]]:
    """Yield lines, and True; of a long one parts come first, and False, and its end, and True."""
    held = ""
    for read in iter(partial(file.readline, PIECE_CHARACTERS), ""):
        held += read
        if held.endswith("\n"):
            yield held, True
            held = ""
        else:  # a separator that the next read completes is not parted
            yield held[:-CONTEXT_CHARACTERS], False
            held = held[-CONTEXT_CHARACTERS:]
    if held:
        yield held, True


def _cut(text: str) -> int:
    """Return where a piece at the beginning of a text ends; 0: more of it must be read."""
    last = len(text) - CONTEXT_CHARACTERS
    gap = _GAP.search(text, PIECE_CHARACTERS, last)
    if gap:
        return gap.start()
    return last if len(text) > _LONGEST_IN_PIECES * PIECE_CHARACTERS else 0


def _last(text: str, before: str) -> Iterator[Piece]:
    """Yield the piece that ends a document; none of a document without text."""
    if text.strip() or before:
        yield Piece(text, True, before)


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


def _read_files(files: list[Path], column: str) -> Iterator[Piece]:
    readers = {".jsonl": _json_lines, ".parquet": _parquet}
    for path in files:
        kind = path.suffix.lower()
        with shared_error("stream"):
            yield from _text(path) if kind == ".txt" else _pieces(readers[kind](path, column))


def _text(path: Path) -> Iterator[Piece]:
    with path.open(encoding="utf-8-sig") as file:  # a mark of the byte order is no text
        try:
            yield from _split(file)
        except UnicodeDecodeError as error:
            raise SubjectError(
                f"{path}{_line_of(path)} is not UTF-8: {error.reason}", hint="Convert the file to UTF-8."
            ) from None


def _line_of(path: Path) -> str:
    """Return which line of a file is the first that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f", line {number},"
    return ""


def _json_lines(path: Path, column: str) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SubjectError(f"{where}: not JSON ({error})", hint="Correct or remove the line.") from None
            if not isinstance(row, dict):
                raise SubjectError(f"{where}: not a JSON object", hint=f'Write {{"{column}": "…"}}, one on each line.')
            yield _text_of(row, column, where)


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise _no_text(names, column, str(path))
            batches = file.iter_batches(batch_size=1024, columns=[column])
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield _text_of(row, column, f"{path}, row {number}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise SubjectError(f"{path} cannot be read as Parquet: {error}", hint="Check the file.") from None


def _text_of(row: dict[str, Any], column: str, where: str) -> str:
    """Return the text of a row; an empty one where it is null.

    Raises:
        ConfigError: the row has no such column, or something else in it.
        SubjectError: the text holds what no UTF-8 can say.
    """
    if column not in row:
        raise _no_text(row, column, where)
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        shown = repr(value) if isinstance(value, int | float) else f"a {type(value).__name__}"
        raise ConfigError(
            f"data.text_column: {where} has {shown} under {column!r}, not text",
            hint=f"Name another column, or write it as text. Its columns: {', '.join(map(str, row))}.",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SubjectError(
            f"{where}: character {error.start + 1} of {column!r} is half of a pair (\\u{ord(value[error.start]):04x}), "
            "which is no text",
            hint="Correct or remove it: the other half was cut off where the text was cut.",
        ) from None
    return value


def _no_text(columns: Iterable[str], column: str, where: str) -> ConfigError:
    return ConfigError(
        f"data.text_column: {where} has no column {column!r}",
        hint=f"Its columns: {', '.join(map(str, columns)) or 'none'}.",
    )


def _dataset(config: DataConfig) -> Source:
    instead = "Give local .txt, .jsonl or .parquet files, python:stdlib"
    found = find_dataset(config.source, config.name, config.revision, key="data.source", instead=instead)
    builder = found.builder
    identity = {"dataset": config.source, "name": builder.config.name, "hash": builder.hash, "split": config.split}
    identity |= {"revision": config.revision, "column": config.text_column}
    # A limited number of tokens is streamed; a whole data set is downloaded first, and kept in the hub's cache.
    streamed = found.is_online and config.max_tokens is not None and "[" not in config.split
    return Source(identity, lambda: _pieces(_rows(builder, config, streamed=streamed)))


def _rows(builder: Any, config: DataConfig, *, streamed: bool) -> Iterator[str]:
    try:
        if streamed:
            rows = builder.as_streaming_dataset(split=config.split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=config.split)
        for number, row in enumerate(rows, 1):
            yield _text_of(row, config.text_column, f"data set {config.source}, row {number}")
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, OrchError):
            raise
        raise hub.refused(f"data set {config.source!r}", error, "Check the split and the network.") from None
