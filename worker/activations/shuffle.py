"""Shuffle windows of the stream, filled one forward batch at a time; on a GPU the next window while this one trains."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.activations.forward import ForwardBatches
from worker.activations.heldout_split import Contexts

Captured = dict[bytes, list[Tensor]]
"""Forward batches by their contexts' numbers: what a model gave for each, at every hook point."""


class ShuffleBuffer:
    """Fills shuffle windows with the activations of a job's contexts, in the stream's order.

    Forward batch b holds the contexts with numbers [b·size, (b+1)·size) of the stream, wherever windows begin: nothing
    is captured twice at their borders, and what a forward batch holds depends on no window.
    """

    def __init__(
        self,
        forward: ForwardBatches,
        contexts: Contexts,
        *,
        n_vectors: int,
        captured: Captured | None = None,
        keeps: bool = False,
    ) -> None:
        """Divide a stream into windows of n_vectors each.

        Forward batches that are in `captured` are taken out of it; with `keeps` those that are not are put there.
        """
        self.forward, self.contexts, self.n_vectors = forward, contexts, n_vectors
        self._captured: Captured = {} if captured is None else captured
        self._keeps = keeps
        self._last: tuple[int, list[Tensor]] | None = None
        """Number of the last forward batch, and its activations."""

    def allocate(self) -> list[Tensor]:
        """Return memory for one window: an (n_vectors, d_model) for each hook point, in the model's precision."""
        return [
            torch.empty(self.n_vectors, subject.d_model, dtype=subject.dtype, device=self.forward.device)
            for subject in self.forward.subjects
        ]

    def fill(self, window: int, into: list[Tensor], order: NDArray[np.int64] | None = None) -> Iterator[None]:
        """Write vectors [window·n, (window+1)·n) of the stream, stopping for the caller after each forward batch.

        `order` is the window's permutation: row i of a buffer gets the vector order[i] of the window.
        """
        row_of_vector = np.arange(self.n_vectors)
        if order is not None:
            row_of_vector[order] = np.arange(self.n_vectors)
        batches = list(self._batches_of(window))
        self.forward.prepare(np.concatenate([self._contexts_of(number) for _, number in batches]))
        for start, number in batches:
            # A batch may begin before the window and end behind it.
            trained = self._trained_positions(number)[max(0, -start) :]
            rows = row_of_vector[max(0, start) : max(0, start) + len(trained)]
            for buffer, found in zip(into, self._activations(number), strict=True):
                _copy_rows(buffer, rows, found.flatten(0, 1), trained[: len(rows)])
            yield

    @property
    def max_batches(self) -> int:
        """Return the most forward batches a window may need."""
        vectors_per_batch = self.forward.size * self.contexts.n_vectors / self.contexts.n_training
        return int(self.n_vectors / vectors_per_batch) + 2

    def refuse_not_finite(self, window: int) -> None:
        """Search a window's forward batches for values that are not finite.

        Raises:
            SubjectError: names the first token with such values.
        """
        for _, number in self._batches_of(window):
            contexts = self._contexts_of(number)
            is_trained = torch.from_numpy(self.contexts.is_trained(self.forward.tokens.contexts(contexts)))
            for subject, found in zip(self.forward.subjects, self._activations(number), strict=True):
                self.forward.check(found, is_trained.to(found.device), contexts, subject=subject)

    def _batches_of(self, window: int) -> Iterator[tuple[int, int]]:
        """Yield the forward batches of a window: where in it each starts (negative: before it), and its number."""
        window_start, size = window * self.n_vectors, self.forward.size
        number = self.contexts.number_at(window_start) // size
        start = self.contexts.first_vector(number * size) - window_start
        while start < self.n_vectors:
            yield start, number
            number += 1
            start = self.contexts.first_vector(number * size) - window_start

    def _contexts_of(self, number: int) -> NDArray[np.int64]:
        """Return the contexts of a forward batch."""
        return self.contexts.run(number * self.forward.size, self.forward.size)

    def _trained_positions(self, number: int) -> NDArray[np.int64]:
        """Return which positions of a forward batch train, its contexts laid end to end."""
        ids = self.forward.tokens.contexts(self._contexts_of(number))
        return np.flatnonzero(self.contexts.is_trained(ids))

    def _activations(self, number: int) -> list[Tensor]:
        # The last forward batch of a window is the first of the next one.
        if self._last is None or self._last[0] != number:
            self._last = None  # not two of them in memory at once
            contexts = self._contexts_of(number)
            found = self._captured.pop(contexts.tobytes(), None) or self.forward(contexts)
            if self._keeps:
                self._captured[contexts.tobytes()] = found
            self._last = number, found
        return self._last[1]


class SyncBuffer:
    """One window at a time, filled when training asks for it."""

    def __init__(self, shuffle: ShuffleBuffer, seed: int | None) -> None:
        """Shuffle by a seed; not at all by None."""
        self._shuffle, self._seed = shuffle, seed
        self._values = shuffle.allocate()

    def take(self, window: int) -> list[Tensor]:
        """Return a window's raw activations, valid until the next is taken.

        Raises:
            SubjectError: some are not finite; names the first token.
        """
        for _ in self._fill(window, self._values):
            pass
        self._check(window, self._values)
        return self._values

    def prefetch(self, *, n_calls: int) -> None:
        """Capture 1/n_calls of the next window, where that can be done while this one trains."""

    def _fill(self, window: int, values: list[Tensor]) -> Iterator[None]:
        return self._shuffle.fill(window, values, _permutation(self._seed, window, self._shuffle.n_vectors))

    def _check(self, window: int, values: list[Tensor]) -> None:
        # One sum finds any NaN or infinity; which token has it is searched for only then.
        if not all(torch.isfinite(buffer.sum(dtype=torch.float32)) for buffer in values):
            self._shuffle.refuse_not_finite(window)


class PrefetchBuffer(SyncBuffer):
    """The same windows on a GPU: the next one is captured on a CUDA stream of its own while this one trains.

    There are two sets of buffers. Forward batches, their order and their sizes are those of `SyncBuffer`: only when
    they run differs, so no number can.
    """

    def __init__(self, shuffle: ShuffleBuffer, seed: int | None) -> None:
        """Shuffle by a seed; not at all by None."""
        super().__init__(shuffle, seed)
        self._device = shuffle.forward.device
        self._next_values = shuffle.allocate()
        self._cuda_stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._filling: tuple[int, Iterator[None]] | None = None
        """The window that is being filled, and its remaining forward batches."""

    def take(self, window: int) -> list[Tensor]:
        """Return a window's raw activations, and begin to capture the next."""
        if self._filling is None or self._filling[0] != window:
            self._begin(window)
        assert self._filling is not None
        with torch.cuda.stream(self._cuda_stream):
            for _ in self._filling[1]:
                pass
        torch.cuda.current_stream(self._device).wait_stream(self._cuda_stream)
        self._values, self._next_values = self._next_values, self._values
        self._check(window, self._values)
        self._begin(window + 1)
        return self._values

    def prefetch(self, *, n_calls: int) -> None:
        """Launch 1/n_calls of the next window's forward batches; nothing waits for them."""
        assert self._filling is not None
        n_batches = -(-self._shuffle.max_batches // n_calls)
        with torch.cuda.stream(self._cuda_stream):
            for _ in zip(range(n_batches), self._filling[1], strict=False):
                pass

    def _begin(self, window: int) -> None:
        # Training may still read the buffers that are filled next.
        self._cuda_stream.wait_stream(torch.cuda.current_stream(self._device))
        self._filling = window, self._fill(window, self._next_values)


def make_buffer(shuffle: ShuffleBuffer, *, seed: int | None = None) -> SyncBuffer:
    """Return the buffer for the device that a stream is captured on."""
    if shuffle.forward.device.type == "cuda":
        return PrefetchBuffer(shuffle, seed)
    return SyncBuffer(shuffle, seed)


def _permutation(seed: int | None, window: int, n: int) -> NDArray[np.int64] | None:
    if seed is None:
        return None
    mixed = int(np.random.SeedSequence([seed, window]).generate_state(1, np.uint64)[0])
    found: NDArray[np.int64] = torch.randperm(n, generator=torch.Generator().manual_seed(mixed >> 1)).numpy()
    return found


def _copy_rows(buffer: Tensor, rows: NDArray[np.int64], found: Tensor, found_rows: NDArray[np.int64]) -> None:
    """Copy rows `found_rows` of `found` to rows `rows` of a buffer."""
    if not len(found_rows):
        return
    if buffer.device.type == "cuda":
        to, of = (torch.from_numpy(x).pin_memory().to(buffer.device, non_blocking=True) for x in (rows, found_rows))
        with torch.inference_mode():
            buffer.index_copy_(0, to, found.index_select(0, of))
        return
    # Row by row, numpy is twice as fast as index_copy_, and needs no threads, whose barriers cost most on a busy CPU.
    source, target = _opaque_rows(found), _opaque_rows(buffer)
    first, last = found_rows[0], found_rows[-1]
    is_contiguous = last + 1 - first == len(found_rows)
    target[rows] = source[first : last + 1] if is_contiguous else source[found_rows]


def _opaque_rows(values: Tensor) -> NDArray[np.void]:
    """Return a view of each row as one opaque value: numpy has no bfloat16."""
    flat = values.contiguous().view(torch.uint8).numpy()
    return flat.view(np.dtype((np.void, flat.shape[1])))[:, 0]
