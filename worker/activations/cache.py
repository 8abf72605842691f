"""The activation cache of one hook point and text: shards on disk, whole or not there, checked when first read."""

import hashlib
import json
import os
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.storage import activation_caches
from worker.checked_folder import sha256_of_file, write_file
from worker.data.token_file import TokenFile
from worker.protocol import Cached
from worker.subject.model import Subject

_FORMAT = 1


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
        "dtype": [subject.precision, str(subject.dtype).removeprefix("torch.")],
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
        """Open the cache of a hook point and a text, made first where it is missing; it is in use until `close`.

        Raises:
            OSError: it can neither be read nor made.
        """
        self._subject, self._tokens = subject, tokens
        self.key = key_of(subject, tokens)
        self.path = root / self.key
        self._lock = activation_caches.lock_for_use(self.path)
        self._row_bytes = tokens.context_length * subject.d_model * subject.dtype.itemsize
        self._shard = np.full(tokens.n_contexts, -1, dtype=np.int32)
        """By context: the shard that holds it; -1 = none."""
        self._row = np.zeros(tokens.n_contexts, dtype=np.int64)
        """By context: its row in that shard."""
        self._names: list[str] = []
        """By shard: its file name, without the ending."""
        self._known = {Path(activation_caches.FACTS).stem}
        self._unread: set[str] = set()
        """Names of shards that could not be read; a context that another shard also holds is read from that one."""
        self._bytes = 0
        self._open: dict[int, NDArray[np.void]] = {}
        """Checked shards, mapped into memory."""
        if not (self.path / activation_caches.FACTS).exists():
            facts = _identity(subject, tokens) | {"model": subject.config.model, "hook_point": str(subject.hook)}
            write_file(self.path / activation_caches.FACTS, json.dumps(facts, indent=2).encode())
        self.rescan()

    def close(self) -> None:
        """Release the lock: other processes may remove the cache."""
        self._open.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def state(self) -> Cached:
        """Return what the cache holds, for the database."""
        is_held = self._shard >= 0
        return Cached(
            key=self.key,
            uri=str(self.path),
            subject=self._subject.config.model,
            hook=str(self._subject.hook),
            tokens_id=self._tokens.id,
            bytes=self._bytes,
            shards=len(set(self._shard[is_held])),
            complete=bool(is_held.all()),
        )

    def bytes_of(self, contexts: NDArray[np.int64]) -> int:
        """Return what some contexts take on disk."""
        return len(contexts) * self._row_bytes

    def rescan(self) -> None:
        """Add the shards that any process has written since."""
        for manifest in sorted(self.path.glob("*.json"), key=lambda path: (path.stem in self._unread, path.stem)):
            if manifest.stem not in self._known:
                with suppress(OSError, ValueError, KeyError, TypeError, IndexError):
                    self._add_shard(manifest)

    def missing(self, contexts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of some contexts no shard holds, in their order, each once; the shards are checked first."""
        for shard in np.unique(self._shard[contexts]):
            if shard >= 0 and int(shard) not in self._open:
                self._check(int(shard))
        return np.array(list(dict.fromkeys(contexts[self._shard[contexts] < 0].tolist())), dtype=np.int64)

    def read(self, contexts: NDArray[np.int64]) -> Tensor:
        """Return the activations of contexts of which none is missing: (n, context, d_model), on the CPU, raw."""
        rows = np.empty(len(contexts), dtype=np.dtype((np.void, self._row_bytes)))
        shards = self._shard[contexts]
        for shard in np.unique(shards):
            mine = shards == shard
            rows[mine] = self._open[int(shard)][self._row[contexts[mine]]]
        flat = torch.from_numpy(rows.view(np.uint8)).view(self._subject.dtype)
        return flat.view(len(contexts), self._tokens.context_length, self._subject.d_model)

    def _add_shard(self, manifest: Path) -> None:
        values = json.loads(manifest.read_text())
        contexts = np.asarray(values["contexts"], dtype=np.int64)
        if manifest.with_suffix(".bin").stat().st_size != len(contexts) * self._row_bytes:
            manifest.unlink()
            return
        is_new = self._shard[contexts] < 0
        self._shard[contexts[is_new]] = len(self._names)
        self._row[contexts[is_new]] = np.flatnonzero(is_new)
        self._names.append(manifest.stem)
        self._known.add(manifest.stem)
        self._bytes += len(contexts) * self._row_bytes

    def _check(self, shard: int) -> None:
        """Map a shard into memory if its sha256 is right, else delete it; leave it out if it cannot be read now."""
        path = self.path / self._names[shard]
        try:
            expected = json.loads(path.with_suffix(".json").read_text())["sha256"]
            if sha256_of_file(path.with_suffix(".bin")) == expected:
                self._open[shard] = np.memmap(path.with_suffix(".bin"), dtype=(np.void, self._row_bytes), mode="r")
                return
            self._delete(path)
        except (FileNotFoundError, ValueError, KeyError):
            self._delete(path)
        except OSError:  # too many open files, a disk that does not answer: that says nothing of the shard
            self._unread.add(path.name)
        self._bytes -= int((self._shard == shard).sum()) * self._row_bytes
        self._shard[self._shard == shard] = -1
        self._known.discard(self._names[shard])  # captured again, the same contexts make a shard of this name

    def _delete(self, path: Path) -> None:
        for file_name in (path.with_suffix(".json"), path.with_suffix(".bin")):
            with suppress(OSError):
                file_name.unlink()


class ShardWriter:
    """A shard that is being written, in a file of its own: no process sees it before `commit`."""

    def __init__(self, folder: Path) -> None:
        """Open a new file in the cache's folder.

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
        """Make it a shard: first the data, then the manifest, which marks it as complete."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sha256 = self._digest.hexdigest()
        final = self._path.with_name(f"{sha256[:32]}.bin")
        self._path.replace(final)
        manifest = {"format": _FORMAT, "sha256": sha256, "contexts": self._contexts}
        write_file(final.with_suffix(".json"), json.dumps(manifest).encode())

    def abandon(self) -> None:
        """Delete the unfinished file; after `commit` this does nothing."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self._path.unlink()
