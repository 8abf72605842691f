"""Text -> one packed token file: memory-mapped, named by its content, written once, resumed if its writer dies."""

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.job import DataConfig
from orchestrator.config.model_fit import check_bos, check_context
from orchestrator.errors import SubjectError, shared_error
from worker.checked_folder import write_file
from worker.data.documents import Piece, Source, open_source
from worker.data.progress import report_progress
from worker.subject.tokenizer import special_ids, tokenizer_json, unknown_id

FORMAT = 2
"""Goes up when the same text and tokenizer would give other tokens. 2: long documents tokenise as a whole."""
BATCH_CHARACTERS = 1 << 20
SAVE_SECONDS = 2.0
MOST_UNKNOWN = 0.02
"""Share of unknown tokens above which a warning is printed: of real text a tokenizer knows nearly all."""
OnProgress = Callable[[int], None]
"""Takes the tokens packed so far; called often, also while another process packs."""


@dataclass(frozen=True)
class TokenFile:
    """A packed token file, cut into contexts of one length."""

    path: Path
    id: str
    """sha256 over tokenizer, text and limit: the same id holds the same tokens."""
    n_tokens: int
    largest_id: int
    context_length: int
    """Tokens per context, the BOS put before it included."""
    special_ids: tuple[int, ...]
    bos_id: int | None = None
    """Token put before every context; None = contexts follow each other without one."""
    unknown: int = 0
    """Tokens of the file that stand for text the tokenizer has no token for."""

    @property
    def stride(self) -> int:
        """Return the tokens of the file that a context takes."""
        return self.context_length - (self.bos_id is not None)

    @property
    def n_contexts(self) -> int:
        """Return the number of whole contexts."""
        return self.n_tokens // self.stride

    def read(self) -> NDArray[Any]:
        """Return the tokens of all whole contexts, memory-mapped: (n_contexts, stride)."""
        kind = np.uint16 if self.path.suffix == ".u16" else np.uint32
        used = self.n_contexts * self.stride
        return np.memmap(self.path, dtype=kind, mode="r", shape=(self.n_tokens,))[:used].reshape(-1, self.stride)

    def contexts(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the token ids of some contexts: (n, context_length)."""
        found = self.read()[indices].astype(np.int64)
        return found if self.bos_id is None else np.insert(found, 0, self.bos_id, axis=1)


@dataclass
class _Packed:
    """How much has been packed so far."""

    pieces: int = 0
    tokens: int = 0
    largest_id: int = 0
    unknown: int = 0


def pack(config: DataConfig, tokenizer: Any, folder: Path, on_progress: OnProgress | None = None) -> TokenFile:
    """Return the packed token file of a config, and write it first where it is not there yet.

    Raises:
        ConfigError: there is no such text, or no BOS token to prepend.
        SubjectError: the text cannot be read, or is empty.
    """
    with shared_error("stream"):
        check_bos(config, has_bos=tokenizer.bos_token_id is not None)
        check_context(config, None)
    source = open_source(config)
    identity = {
        "format": FORMAT,
        "tokenizer": _fingerprint(tokenizer),
        "end": _end_of_document(tokenizer),
        "special": {"ids": special_ids(tokenizer), "bos": tokenizer.bos_token_id},
        "source": source.identity,
        "max_tokens": config.max_tokens,
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = folder / f"{name[:16]}.{'u16' if _largest(tokenizer) < 1 << 16 else 'u32'}"
    facts = _facts(path)
    if facts is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_writer(path.with_suffix(".lock"), on_progress):
            facts = _facts(path) or _write(path, source, tokenizer, config=config, on_progress=on_progress)
    if facts["unknown"] > MOST_UNKNOWN * facts["tokens"]:
        share = facts["unknown"] / facts["tokens"]
        print(
            f"warning: {share:.0%} of the tokens of {config.source} are unknown to the tokenizer: it is another "
            "model's, or was made for other text",
            file=sys.stderr,
            flush=True,
        )
    return TokenFile(
        path=path,
        id=name,
        n_tokens=facts["tokens"],
        largest_id=facts["largest_id"],
        context_length=config.context_length,
        special_ids=special_ids(tokenizer),
        bos_id=tokenizer.bos_token_id if config.prepend_bos else None,
        unknown=facts["unknown"],
    )


def _write(
    path: Path, source: Source, tokenizer: Any, *, config: DataConfig, on_progress: OnProgress | None
) -> dict[str, Any]:
    partial, state = path.with_suffix(".partial"), path.with_suffix(".state")
    kind = np.uint16 if path.suffix == ".u16" else np.uint32
    partial.touch()
    done = _resume(partial, state, kind().itemsize)
    saved = time.monotonic()
    unknown = unknown_id(tokenizer)
    label = f"packing {config.source}"
    with partial.open("r+b") as file, report_progress(label, config.max_tokens, on_progress) as report:
        file.truncate(done.tokens * kind().itemsize)
        file.seek(0, os.SEEK_END)
        for batch in _batches(islice(source.pieces(), done.pieces, None)):
            if config.max_tokens is not None and done.tokens >= config.max_tokens:
                break
            ids = _encode(tokenizer, batch)
            if config.max_tokens is not None:
                ids = ids[: config.max_tokens - done.tokens]
            file.write(ids.astype(kind).tobytes())
            done.pieces += len(batch)
            done.unknown += 0 if unknown is None else int((ids == unknown).sum())
            done.tokens += len(ids)
            done.largest_id = max(done.largest_id, int(ids.max(initial=0)))
            report(done.tokens)
            if time.monotonic() - saved > SAVE_SECONDS:
                _flush(file)
                _save(state, asdict(done))
                saved = time.monotonic()
        _flush(file)
    if not done.tokens:
        partial.unlink()
        raise SubjectError(f"data.source: {config.source} holds no text", hint="Give files that are not empty.")
    partial.rename(path)
    facts = asdict(done) | {"source": source.identity}
    _save(path.with_suffix(".json"), facts)
    state.unlink(missing_ok=True)
    return facts


def _encode(tokenizer: Any, batch: list[Piece]) -> NDArray[np.int64]:
    # A tokenizer written in Python tells no offsets: it reads each piece alone.
    with_offsets = tokenizer.is_fast and any(piece.before or piece.after for piece in batch)
    found = tokenizer(
        [piece.before + piece.text + piece.after if with_offsets else piece.text for piece in batch],
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=with_offsets,
        verbose=False,
    )
    parts: list[list[int]] = found["input_ids"]
    if with_offsets:
        parts = [_within(*each) for each in zip(batch, parts, found["offset_mapping"], strict=True)]
    end = _end_of_document(tokenizer)
    after = [] if end is None else [end]
    parts = [ids + after if piece.ends else ids for piece, ids in zip(batch, parts, strict=True)]
    return np.fromiter((i for part in parts for i in part), dtype=np.int64, count=sum(map(len, parts)))


def _within(piece: Piece, ids: list[int], offsets: list[tuple[int, int]]) -> list[int]:
    """Return the tokens that begin in a piece, of those of its text and what surrounds it."""
    first, last = len(piece.before), len(piece.before) + len(piece.text)
    if not piece.after:
        last += 1  # what begins at the end of the document has no text
    return [i for i, (start, _) in zip(ids, offsets, strict=True) if first <= start < last]


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _end_of_document(tokenizer: Any) -> int | None:
    # A model that was never given an EOS still knows a new document by its BOS.
    end = tokenizer.bos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    return None if end is None else int(end)


def _fingerprint(tokenizer: Any) -> str:
    known = tokenizer_json(tokenizer) or {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _largest(tokenizer: Any) -> int:
    return max(tokenizer.get_vocab().values(), default=0)


def _facts(path: Path) -> dict[str, Any] | None:
    """Read what is known of a finished token file; None where it is not there whole."""
    try:
        facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        is_whole = path.stat().st_size == facts["tokens"] * (2 if path.suffix == ".u16" else 4)
    except (OSError, ValueError, KeyError):
        return None
    return facts if is_whole else None


def _resume(partial: Path, state: Path, itemsize: int) -> _Packed:
    try:
        done = _Packed(**json.loads(state.read_text()))
    except (OSError, ValueError, TypeError):
        return _Packed()
    return done if partial.stat().st_size >= done.tokens * itemsize else _Packed()


def _save(path: Path, values: dict[str, Any]) -> None:
    write_file(path, json.dumps(values).encode())


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _only_writer(lock: Path, on_progress: OnProgress | None) -> Iterator[None]:
    """Wait until no other process packs this text; the lock goes with its process, however that ends."""
    label = "waiting for another process that packs this text"
    with lock.open("w") as file, report_progress(label, None, on_progress) as report:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(0)
                time.sleep(0.2)
        yield
