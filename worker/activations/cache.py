"""Activations kept on disk: shards named by their content, whole or not there, checked when first read."""

import hashlib
import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.storage import activation_caches
from worker.data.token_file import TokenFile
from worker.subject.model import Subject

_FORMAT = 1


class Stored(NamedTuple):
    """What a cache holds by now."""

    key: str
    uri: str
    subject: str
    """Name of the model; its fingerprint is in the key."""
    hook: str
    tokens_id: str
    bytes: int
    shards: int
    complete: bool
    """Whether it holds every context of the token file."""


def key_of(subject: Subject, tokens: TokenFile) -> str:
    """Return the sha256 of what decides raw activations: nothing of seeds, batches or what is held out."""
    return hashlib.sha256(json.dumps(_identity(subject, tokens), sort_keys=True).encode()).hexdigest()


def _identity(subject: Subject, tokens: TokenFile) -> dict[str, object]:
    hook = subject.hook
    return {
        "format": _FORMAT,
        "weights": subject.fingerprint,
        "hook": [hook.name, hook.end, hook.block if hook.end == "sum" else ""],
        "tokens": tokens.id,
        "context_length": tokens.context_length,
        "bos": tokens.bos_id,
        # The precision of the model, and of what this module gives: they may differ.
        "dtype": [subject.config.dtype, str(subject.dtype).removeprefix("torch.")],
    }


class Cache:
    """The activations of one hook point on one text.

    A shard is two files: `<name>.bin`, the raw activations of some contexts in the subject's precision, and
    `<name>.json`, which contexts, how many bytes and their sha256. Each is written beside, flushed, and renamed; the
    JSON last, and only with it the shard is there. The name is the start of the sha256: processes that capture the
    same contexts at once write the same file twice. A shard whose bytes are not those its manifest names is deleted
    when it is first read, and its contexts are captured again; one that cannot be read just then stays.
    """

    def __init__(self, root: Path, subject: Subject, tokens: TokenFile) -> None:
        """Open the cache of a hook point and a text, and hold it until `close`.

        Raises:
            OSError: it can neither be read nor made.
        """
        self._subject, self._tokens = subject, tokens
        self.key = key_of(subject, tokens)
        self.path = root / self.key
        self._lock = activation_caches.hold(self.path)
        self._row_bytes = tokens.context_length * subject.d_model * subject.dtype.itemsize
        self._shard = np.full(tokens.n_contexts, -1, dtype=np.int32)
        self._row = np.zeros(tokens.n_contexts, dtype=np.int64)
        self._names: list[str] = []
        self._known = {Path(activation_caches.FACTS).stem}
        self._unread: set[str] = set()
        """Names of shards that could not be read when it was tried; what another holds too is read from there."""
        self._bytes = 0
        self._open: dict[int, NDArray[np.void]] = {}
        if not (self.path / activation_caches.FACTS).exists():
            facts = _identity(subject, tokens) | {"model": subject.config.model, "hook_point": str(subject.hook)}
            _publish(self.path / activation_caches.FACTS, json.dumps(facts, indent=2).encode())
        self.rescan()

    def close(self) -> None:
        """Let others remove it."""
        self._open.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def state(self) -> Stored:
        """Return what is there, for the database."""
        return Stored(
            self.key, str(self.path), self._subject.config.model, str(self._subject.hook), self._tokens.id,
            self._bytes, len(set(self._shard[self._shard >= 0])), bool((self._shard >= 0).all()),
        )  # fmt: skip

    def bytes_of(self, contexts: NDArray[np.int64]) -> int:
        """Return what some contexts take on disk."""
        return len(contexts) * self._row_bytes

    def rescan(self) -> None:
        """Learn of shards that came since, from whichever process."""
        for manifest in sorted(self.path.glob("*.json"), key=lambda path: (path.stem in self._unread, path.stem)):
            if manifest.stem not in self._known:
                with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
                    self._learn(manifest)

    def missing(self, contexts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of some contexts are not there, in their order, each once; what is there has been checked."""
        for shard in np.unique(self._shard[contexts]):
            if shard >= 0 and int(shard) not in self._open:
                self._check(int(shard))
        return np.array(list(dict.fromkeys(contexts[self._shard[contexts] < 0].tolist())), dtype=np.int64)

    def read(self, contexts: NDArray[np.int64]) -> Tensor:
        """Return contexts of which none is missing: (n, context, d_model), on the CPU, in the subject's precision."""
        rows = np.empty(len(contexts), dtype=np.dtype((np.void, self._row_bytes)))
        shards = self._shard[contexts]
        for shard in np.unique(shards):
            mine = shards == shard
            rows[mine] = self._open[int(shard)][self._row[contexts[mine]]]
        flat = torch.from_numpy(rows.view(np.uint8)).view(self._subject.dtype)
        return flat.view(len(contexts), self._tokens.context_length, self._subject.d_model)

    def _learn(self, manifest: Path) -> None:
        values = json.loads(manifest.read_text())
        contexts = np.asarray(values["contexts"], dtype=np.int64)
        if manifest.with_suffix(".bin").stat().st_size != len(contexts) * self._row_bytes:
            manifest.unlink()
            return
        new = self._shard[contexts] < 0
        self._shard[contexts[new]] = len(self._names)
        self._row[contexts[new]] = np.flatnonzero(new)
        self._names.append(manifest.stem)
        self._known.add(manifest.stem)
        self._bytes += len(contexts) * self._row_bytes

    def _check(self, shard: int) -> None:
        """Map a shard into memory if it is what it was; delete it if it is not; do without if nobody can say."""
        path = self.path / self._names[shard]
        try:
            expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
            with path.with_suffix(".bin").open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == expected
            if whole:
                self._open[shard] = np.memmap(path.with_suffix(".bin"), dtype=(np.void, self._row_bytes), mode="r")
                return
        except (FileNotFoundError, ValueError, KeyError):
            self._delete(path)
        except OSError:  # too many open files, a disk that does not answer: that says nothing of the shard
            self._unread.add(path.name)
        else:
            self._delete(path)
        self._bytes -= int((self._shard == shard).sum()) * self._row_bytes
        self._shard[self._shard == shard] = -1
        self._known.discard(self._names[shard])  # captured again, the same contexts make a shard of this very name

    def _delete(self, path: Path) -> None:
        for file_name in (path.with_suffix(".json"), path.with_suffix(".bin")):
            with suppress(OSError):
                file_name.unlink()


class ShardWriter:
    """A shard in the making, in a file of its own: nobody sees it before `commit`."""

    def __init__(self, folder: Path) -> None:
        """Begin, beside what is there.

        Raises:
            OSError: the folder cannot be written.
        """
        self._path = folder / f"{os.getpid()}-{uuid.uuid4().hex}{activation_caches.PARTIAL}"
        self._file = self._path.open("xb")
        self._digest = hashlib.sha256()
        self._contexts: list[int] = []

    def add(self, contexts: NDArray[np.int64], values: Tensor) -> None:
        """Append the activations of some contexts: (len(contexts), context, d_model)."""
        raw = values.contiguous().cpu().view(torch.uint8).numpy().data
        self._file.write(raw)
        self._digest.update(raw)
        self._contexts += contexts.tolist()

    def commit(self) -> None:
        """Make it a shard: data first, then the manifest that says it is there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sha256 = self._digest.hexdigest()
        final = self._path.with_name(f"{sha256[:32]}.bin")
        self._path.replace(final)
        manifest = {"format": _FORMAT, "sha256": sha256, "contexts": self._contexts}
        _publish(final.with_suffix(".json"), json.dumps(manifest).encode())

    def abandon(self) -> None:
        """Leave nothing behind; after `commit` this does nothing."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._path.unlink()


def _publish(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{os.getpid()}-{uuid.uuid4().hex}{activation_caches.PARTIAL}")
    try:
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
