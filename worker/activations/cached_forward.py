"""What a trainer captures once: activations read from disk where they are there, captured and kept where not."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.storage import activation_caches
from worker.activations.cache import Cache, ShardWriter, Stored
from worker.activations.forward import ForwardBatches
from worker.data.token_file import TokenFile
from worker.subject.model import Subject


def _say(text: str) -> None:
    print(f"Warning: {text}", file=sys.stderr, flush=True)


class Store:
    """The activation caches of one trainer, within a quota that all trainers of a data folder share.

    Nothing that goes wrong with it ends a job: a folder that cannot be written, a full disk or a quota that is too
    small is said once, and the rest is captured live, which gives the same values.
    """

    def __init__(
        self,
        root: Path,
        limit_bytes: int,
        *,
        heard: Callable[[Stored], None] | None = None,
        say: Callable[[str], None] = _say,
    ) -> None:
        """Keep caches in a folder; `heard` is told of each when it is opened and when it has grown."""
        self._root, self._limit, self._heard, self._say = root, limit_bytes, heard, say
        self._open: dict[tuple[object, ...], Cache] = {}
        self.writes = True

    def passes(self, subjects: Sequence[Subject], tokens: TokenFile) -> ForwardBatches:
        """Return the forward passes of some hook points, those on disk left out."""
        try:
            live = ForwardBatches(subjects, tokens)
            caches = [self._cache(subject, tokens) for subject in live.subjects]
        except OSError as error:
            self.give_up(f"the activation cache {self._root} cannot be used: {error.strerror or error}")
            return live
        return CachedForwardBatches(self, live.subjects, tokens, caches)

    def has_room(self, n_bytes: int) -> bool:
        """Say whether so much may be written; caches nobody uses make room, the one used longest ago first."""
        if activation_caches.make_room(self._root, n_bytes, self._limit):
            return True
        self.give_up(f"cache_bytes ({self._limit / 1e9:.3g} GB) is used up by caches in use")
        return False

    def grown(self, cache: Cache) -> None:
        """Tell of a cache that has grown."""
        cache.rescan()
        self._tell(cache)

    def give_up(self, why: str) -> None:
        """Write nothing more, and say so once."""
        if self.writes:
            self._say(f"{why}; activations that are not there yet are captured live")
        self.writes = False

    def close(self) -> None:
        """Let others remove what this trainer used."""
        for cache in self._open.values():
            cache.close()
        self._open.clear()

    def _cache(self, subject: Subject, tokens: TokenFile) -> Cache:
        place = (subject.hook, tokens.id, tokens.context_length, tokens.bos_id)
        if place not in self._open:
            self._open[place] = Cache(self._root, subject, tokens)
            self._tell(self._open[place])
        return self._open[place]

    def _tell(self, cache: Cache) -> None:
        if self._heard is not None:
            self._heard(cache.state)


class CachedForwardBatches(ForwardBatches):
    """Passes whose values come from the disk, put there first where they are missing."""

    def __init__(self, store: Store, subjects: Sequence[Subject], tokens: TokenFile, caches: list[Cache]) -> None:
        """Read each hook point from its own cache."""
        super().__init__(subjects, tokens)
        self._store, self._caches = store, caches

    def prepare(self, contexts: NDArray[np.int64]) -> None:
        """Capture what is missing of some contexts, in whole passes: one forward for all hook points that lack it."""
        for cache in self._caches:
            cache.rescan()
        lacking = [cache.missing(contexts) for cache in self._caches]
        several = np.concatenate(lacking)
        wanted = np.array(list(dict.fromkeys(several.tolist())), dtype=np.int64)
        n_bytes = sum(cache.bytes_of(part) for cache, part in zip(self._caches, lacking, strict=True))
        if not len(wanted) or not self._store.writes or not self._store.has_room(n_bytes):
            return
        try:
            self._capture(wanted, lacking)
        except OSError as error:
            self._store.give_up(f"the activation cache cannot be written: {error.strerror or error}")

    def __call__(self, contexts: NDArray[np.int64]) -> list[Tensor]:
        """Return the activations of at most `size` contexts: one (n, context, d_model) for each hook point."""
        there = [not len(cache.missing(contexts)) for cache in self._caches]
        live = [] if all(there) else super().__call__(contexts)
        return [self._read(cache, contexts) if there[i] else live[i] for i, cache in enumerate(self._caches)]

    def _read(self, cache: Cache, contexts: NDArray[np.int64]) -> Tensor:
        values = cache.read(contexts)
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values

    def _capture(self, wanted: NDArray[np.int64], lacking: list[NDArray[np.int64]]) -> None:
        growing = [(i, cache) for i, cache in enumerate(self._caches) if len(lacking[i])]
        with ExitStack() as stack:
            writers = {i: ShardWriter(cache.path) for i, cache in growing}
            for writer in writers.values():
                stack.callback(writer.abandon)
            for first in range(0, len(wanted), self.size):
                chosen = wanted[first : first + self.size]
                found = super().__call__(chosen)
                for i, writer in writers.items():
                    mine = np.isin(chosen, lacking[i])
                    writer.add(chosen[mine], found[i][mine])
            for i, cache in growing:
                writers[i].commit()
                self._store.grown(cache)
