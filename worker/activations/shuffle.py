"""Windows of the stream: shuffled raw activations, filled pass by pass; on a GPU the next one while this one trains."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.activations.forward import ForwardBatches
from worker.activations.heldout_split import Contexts


class ShuffleBuffer:
    """What fills a window: the passes of a job's contexts, in the stream's order.

    Pass p holds the contexts with numbers [p·size, (p+1)·size) of the stream, wherever windows begin: nothing is
    captured twice at their borders, and what a pass holds depends on no window.
    """

    def __init__(self, passes: ForwardBatches, contexts: Contexts, *, n_vectors: int) -> None:
        """Divide a stream into windows of n_vectors each."""
        self.passes, self.contexts, self.n_vectors = passes, contexts, n_vectors
        self._last: tuple[int, list[Tensor]] | None = None

    def buffers(self) -> list[Tensor]:
        """Return room for one window: an (n_vectors, d_model) for each hook point, in the model's precision."""
        return [
            torch.empty(self.n_vectors, s.d_model, dtype=s.dtype, device=self.passes.device)
            for s in self.passes.subjects
        ]

    def fill(self, window: int, into: list[Tensor], order: NDArray[np.int64] | None = None) -> Iterator[None]:
        """Put vectors [window·n, (window+1)·n) of the stream into buffers, stopping for the caller after each pass.

        `order` is the window's permutation: row i of a buffer gets the vector order[i] of the window.
        """
        place = np.arange(self.n_vectors)
        if order is not None:
            place[order] = np.arange(self.n_vectors)
        spans = list(self.spans(window))
        self.passes.prepare(np.concatenate([self.chosen(number) for _, number in spans]))
        for at, number in spans:
            rows = self._trained(number)
            rows, places = rows[max(0, -at) :], place[max(0, at) : max(0, at) + len(rows) - max(0, -at)]
            for buffer, found in zip(into, self._pass(number), strict=True):
                _scatter(buffer, places, found.flatten(0, 1), rows[: len(places)])
            yield

    def spans(self, window: int) -> Iterator[tuple[int, int]]:
        """Yield the passes of a window: where in it each begins (negative: before it), and its number."""
        start, size = window * self.n_vectors, self.passes.size
        number = self.contexts.number_at(start) // size
        at = self.contexts.first_vector(number * size) - start
        while at < self.n_vectors:
            yield at, number
            number += 1
            at = self.contexts.first_vector(number * size) - start

    @property
    def n_passes(self) -> int:
        """Return the most passes a window may need."""
        per_pass = self.passes.size * self.contexts.n_vectors / self.contexts.n_training
        return int(self.n_vectors / per_pass) + 2

    def find_bad(self, window: int) -> None:
        """Look through a window's passes for values that are not finite.

        Raises:
            SubjectError: names the first token with such values.
        """
        for _, number in self.spans(window):
            chosen = self.chosen(number)
            trained = torch.from_numpy(self.contexts.is_trained(self.passes.tokens.contexts(chosen)))
            for subject, found in zip(self.passes.subjects, self._pass(number), strict=True):
                self.passes.check(found, trained.to(found.device), chosen, subject=subject)

    def chosen(self, number: int) -> NDArray[np.int64]:
        """Return the contexts of a pass."""
        return self.contexts.run(number * self.passes.size, self.passes.size)

    def _trained(self, number: int) -> NDArray[np.int64]:
        ids = self.passes.tokens.contexts(self.chosen(number))
        return np.flatnonzero(self.contexts.is_trained(ids))

    def _pass(self, number: int) -> list[Tensor]:
        # The last pass of a window is the first of the next one.
        if self._last is None or self._last[0] != number:
            self._last = None  # not two of them at once
            self._last = number, self.passes(self.chosen(number))
        return self._last[1]


class SyncBuffer:
    """Windows as training asks for them, each filled when it is."""

    def __init__(self, windows: ShuffleBuffer, seed: int | None) -> None:
        """Shuffle by a seed, or not at all."""
        self._windows, self._seed = windows, seed
        self._values = windows.buffers()

    def take(self, window: int) -> list[Tensor]:
        """Return a window's raw activations, good until the next is taken.

        Raises:
            SubjectError: some are not finite; names the first token.
        """
        for _ in self._steps(window, self._values):
            pass
        self._check(window, self._values)
        return self._values

    def go_on(self, *, batches: int) -> None:
        """Capture a batch's share of the next window, where that can be done meanwhile."""

    def _steps(self, window: int, values: list[Tensor]) -> Iterator[None]:
        return self._windows.fill(window, values, _permutation(self._seed, window, self._windows.n_vectors))

    def _check(self, window: int, values: list[Tensor]) -> None:
        # One sum finds any NaN or infinity; what it finds is looked for only then.
        if all(torch.isfinite(buffer.sum(dtype=torch.float32)) for buffer in values):
            return
        self._windows.find_bad(window)


class PrefetchBuffer(SyncBuffer):
    """The same windows on a GPU: the next one is captured on a stream of its own while this one trains.

    There are two sets of buffers. Passes, their order and their sizes are those of `SyncBuffer`: only when they run
    differs, so no number can.
    """

    def __init__(self, windows: ShuffleBuffer, seed: int | None) -> None:
        """Shuffle by a seed, or not at all."""
        super().__init__(windows, seed)
        self._spare = windows.buffers()
        self._side = torch.cuda.Stream(windows.passes.device)  # type: ignore[no-untyped-call]
        self._coming: tuple[int, Iterator[None]] | None = None

    def take(self, window: int) -> list[Tensor]:
        """Return a window's raw activations, and begin with the next."""
        if self._coming is None or self._coming[0] != window:
            self._begin(window)
        assert self._coming is not None
        with torch.cuda.stream(self._side):
            for _ in self._coming[1]:
                pass
        torch.cuda.current_stream(self._windows.passes.device).wait_stream(self._side)
        self._values, self._spare = self._spare, self._values
        self._check(window, self._values)
        self._begin(window + 1)
        return self._values

    def go_on(self, *, batches: int) -> None:
        """Launch a batch's share of the next window; nothing waits for it."""
        assert self._coming is not None
        share = -(-self._windows.n_passes // batches)
        with torch.cuda.stream(self._side):
            for _ in zip(range(share), self._coming[1], strict=False):
                pass

    def _begin(self, window: int) -> None:
        # What trains until now may still read the buffers that are filled next.
        self._side.wait_stream(torch.cuda.current_stream(self._windows.passes.device))
        self._coming = window, self._steps(window, self._spare)


def ready(windows: ShuffleBuffer, *, seed: int | None = None) -> SyncBuffer:
    """Return the way windows are filled on their device."""
    return (PrefetchBuffer if windows.passes.device.type == "cuda" else SyncBuffer)(windows, seed)


def _permutation(seed: int | None, window: int, n: int) -> NDArray[np.int64] | None:
    if seed is None:
        return None
    mixed = int(np.random.SeedSequence([seed, window]).generate_state(1, np.uint64)[0])
    found: NDArray[np.int64] = torch.randperm(n, generator=torch.Generator().manual_seed(mixed >> 1)).numpy()
    return found


def _scatter(buffer: Tensor, places: NDArray[np.int64], found: Tensor, rows: NDArray[np.int64]) -> None:
    """Copy rows of `found` to places of a buffer."""
    if not len(rows):
        return
    if buffer.device.type == "cuda":
        to, of = (torch.from_numpy(x).pin_memory().to(buffer.device, non_blocking=True) for x in (places, rows))
        with torch.inference_mode():
            buffer.index_copy_(0, to, found.index_select(0, of))
        return
    # Row by row, numpy is twice as fast as index_copy_, and needs no threads, whose barriers cost most on a busy CPU.
    source, target = _rows(found), _rows(buffer)
    unbroken = rows[-1] + 1 - rows[0] == len(rows)
    target[places] = source[rows[0] : rows[-1] + 1] if unbroken else source[rows]


def _rows(values: Tensor) -> NDArray[np.void]:
    """Return a view of each row as one opaque value: bfloat16 is none of numpy's types."""
    flat = values.contiguous().view(torch.uint8).numpy()
    return flat.view(np.dtype((np.void, flat.shape[1])))[:, 0]
