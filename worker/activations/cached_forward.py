"""Forward batches read from the activation caches on disk; what is missing there is captured and written first."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.storage import activation_caches
from worker.activations.cache import Cache, ShardWriter
from worker.activations.forward import ForwardBatches
from worker.data.token_file import TokenFile
from worker.protocol import Cached
from worker.subject.model import Subject


def _print_warning(text: str) -> None:
    print(f"Warning: {text}", file=sys.stderr, flush=True)


class CacheStore:
    """The activation caches of one trainer, within a quota that all trainers of a data folder share.

    No trouble with a cache ends a job: of a folder that cannot be written, a full disk or a quota that is too small it
    warns once, and the rest is captured live, which gives the same values.
    """

    def __init__(
        self,
        root: Path,
        limit_bytes: int,
        *,
        on_change: Callable[[Cached], None] | None = None,
        warn: Callable[[str], None] = _print_warning,
    ) -> None:
        """Keep caches in a folder; `on_change` is called for each when it is opened and when it has grown."""
        self._root, self._limit, self._on_change, self._warn = root, limit_bytes, on_change, warn
        self._open: dict[tuple[object, ...], Cache] = {}
        self.writes = True
        """Whether activations are still written; no longer once something went wrong."""

    def forward_batches(self, subjects: Sequence[Subject], tokens: TokenFile) -> ForwardBatches:
        """Return the forward batches of some views of a model, read from disk where they are there."""
        try:
            live = ForwardBatches(subjects, tokens)
            caches = [self._cache(subject, tokens) for subject in live.subjects]
        except OSError as error:
            self.stop_writing(f"the activation cache {self._root} cannot be used: {error.strerror or error}")
            return live
        return CachedForwardBatches(self, live.subjects, tokens, caches)

    def has_room(self, n_bytes: int) -> bool:
        """Say whether so many bytes may be written; unused caches are removed to make room, the oldest use first."""
        if activation_caches.make_room(self._root, n_bytes, self._limit):
            return True
        self.stop_writing(f"cache_bytes ({self._limit / 1e9:.3g} GB) is used up by caches in use")
        return False

    def report_growth(self, cache: Cache) -> None:
        """Report a cache that has grown."""
        cache.rescan()
        self._report(cache)

    def stop_writing(self, why: str) -> None:
        """Write nothing more, and warn of it once."""
        if self.writes:
            self._warn(f"{why}; activations that are not there yet are captured live")
        self.writes = False

    def close(self) -> None:
        """Release every cache: other processes may remove them."""
        for cache in self._open.values():
            cache.close()
        self._open.clear()

    def _cache(self, subject: Subject, tokens: TokenFile) -> Cache:
        key = (subject.hook, tokens.id, tokens.context_length, tokens.bos_id)
        if key not in self._open:
            self._open[key] = Cache(self._root, subject, tokens)
            self._report(self._open[key])
        return self._open[key]

    def _report(self, cache: Cache) -> None:
        if self._on_change is not None:
            self._on_change(cache.state)


class CachedForwardBatches(ForwardBatches):
    """Forward batches whose activations are read from disk, and written there first where they are missing."""

    def __init__(self, store: CacheStore, subjects: Sequence[Subject], tokens: TokenFile, caches: list[Cache]) -> None:
        """Read each hook point from its own cache."""
        super().__init__(subjects, tokens)
        self._store, self._caches = store, caches

    def prepare(self, contexts: NDArray[np.int64]) -> None:
        """Capture what is missing of some contexts: one forward batch serves every hook point that lacks some of it."""
        for cache in self._caches:
            cache.rescan()
        missing = [cache.missing(contexts) for cache in self._caches]
        wanted = np.array(list(dict.fromkeys(np.concatenate(missing).tolist())), dtype=np.int64)
        n_bytes = sum(cache.bytes_of(part) for cache, part in zip(self._caches, missing, strict=True))
        if not len(wanted) or not self._store.writes or not self._store.has_room(n_bytes):
            return
        try:
            self._capture(wanted, missing)
        except OSError as error:
            self._store.stop_writing(f"the activation cache cannot be written: {error.strerror or error}")

    def __call__(self, contexts: NDArray[np.int64]) -> list[Tensor]:
        """Return the activations of at most `size` contexts: one (n, context, d_model) for each hook point."""
        is_on_disk = [len(cache.missing(contexts)) == 0 for cache in self._caches]
        live = [] if all(is_on_disk) else super().__call__(contexts)
        return [self._read(cache, contexts) if is_on_disk[i] else live[i] for i, cache in enumerate(self._caches)]

    def _read(self, cache: Cache, contexts: NDArray[np.int64]) -> Tensor:
        values = cache.read(contexts)
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values

    def _capture(self, wanted: NDArray[np.int64], missing: list[NDArray[np.int64]]) -> None:
        """Write a shard of the wanted contexts to every cache that misses some of them."""
        growing = [(i, cache) for i, cache in enumerate(self._caches) if len(missing[i])]
        with ExitStack() as stack:
            writers = {i: ShardWriter(cache.path) for i, cache in growing}
            for writer in writers.values():
                stack.callback(writer.abandon)
            for first in range(0, len(wanted), self.size):
                chosen = wanted[first : first + self.size]
                found = super().__call__(chosen)
                for i, writer in writers.items():
                    mine = np.isin(chosen, missing[i])
                    writer.add(chosen[mine], found[i][mine])
            for i, cache in growing:
                writers[i].commit()
                self._store.report_growth(cache)
