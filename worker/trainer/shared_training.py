"""Train the jobs of one trainer on one stream of activations: each takes its own step on every batch they share."""

import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from torch import Tensor

from orchestrator.errors import OrchError, SubjectError
from worker.activations.source import HookSlots, Vectors, joined
from worker.channel import SupervisorChannel
from worker.protocol import Exit, Failure
from worker.trainer.job import CaptureCost, JobTraining
from worker.trainer.step_threads import StepThreads


class SharedTraining:
    """Jobs on one stream, which starts at the lowest tokens_seen among them; the others join when it reaches theirs.

    Whatever becomes of one job, the others take the same steps on the same batches as they would alone.
    """

    def __init__(
        self, jobs: Sequence[JobTraining], channel: SupervisorChannel, *, slots: HookSlots, save_every: float,
        threads: int = 1, at_first_end: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Take the jobs over; nothing is captured yet. `at_first_end` is called before the first of them ends."""
        self._threads = StepThreads(threads)
        self._jobs, self._channel, self._slots = [*jobs], channel, slots
        self._save_every, self._saved_at = save_every, time.monotonic()
        self._at_first_end, self._has_ended = at_first_end, False

    def run(self) -> Exit:
        """Train until no job is left, or until told to yield."""
        with self._threads:
            return self._run()

    def _run(self) -> Exit:
        for job in tuple(self._jobs):  # a resumed one may have been at its end already
            self._end_if_over(job, job.outcome_so_far())
        while self._jobs:
            slots = self._slots_in_use()
            try:
                self._train_on_stream(slots)
            except SubjectError:
                if not self._end_unreadable(slots):
                    raise
            if self._channel.must_yield:
                self._save(self._jobs)
                return Exit.YIELDED
        return Exit.DONE

    def _train_on_stream(self, slots: list[int]) -> None:
        """Train on one stream until another one should be read."""
        position = self._lowest_position()
        with closing(self._stream(slots, position)) as batches:
            for vectors, seconds in _timed(batches):
                n_tokens = len(vectors[0][0])
                batches_of = dict(zip(slots, map(joined, vectors), strict=True))
                position = self._train_on_batch(batches_of, position, n_tokens=n_tokens, seconds=seconds)
                if self._channel.must_yield or not self._should_go_on(slots, position):
                    return

    def _train_on_batch(self, batches: dict[int, Tensor], position: int, *, n_tokens: int, seconds: float) -> int:
        """Let every job at the position take a step on its slot's batch; return the position after it."""
        present = [job for job in self._jobs if job.tokens_seen == position]
        flops = self._slots.source.flops(self._slots.configs([*batches])) * n_tokens
        cost = CaptureCost(seconds / len(present), flops / len(present))  # captured once for all
        for job, outcome in self._threads.take(present, lambda job: job.step(batches[job.slot], cost)):
            with self._isolate_failure(job):
                self._end_if_over(job, outcome())
        self._drop_requested()
        if time.monotonic() - self._saved_at >= self._save_every:
            self._save(job for job in present if job in self._jobs)
        return position + n_tokens

    def _should_go_on(self, slots: list[int], position: int) -> bool:
        """Say whether the stream is still the right one to read."""
        if all(job.tokens_seen != position for job in self._jobs):
            return False  # the jobs that are left are further on
        # A stream of fewer slots costs less, and between two windows changing to it costs nothing.
        window = self._slots.all[0].config.training.shuffle_tokens
        return position % window != 0 or self._slots_in_use() == slots

    def _end_unreadable(self, slots: list[int]) -> bool:
        """End the jobs whose own slot cannot be read, and say whether there are any.

        A stream of several slots does not say which of them it failed at.
        """
        n_before, position = len(self._jobs), self._lowest_position()
        for slot in slots:
            for job in [job for job in self._jobs if job.slot == slot]:
                with self._isolate_failure(job), closing(self._stream([slot], position)) as batches:
                    next(batches)
        return len(self._jobs) < n_before

    def _save(self, jobs: Iterable[JobTraining]) -> None:
        for job in tuple(jobs):
            with self._isolate_failure(job):
                job.save()
        self._saved_at = time.monotonic()

    def _drop_requested(self) -> None:
        """Drop the jobs that the supervisor asks to be dropped."""
        for request in self._channel.drop_requests():
            for job in [job for job in self._jobs if job.job_id == request.job_id]:
                with self._isolate_failure(job):
                    job.leave(save=request.save)
                    self._jobs.remove(job)

    def _end_if_over(self, job: JobTraining, outcome: str | None) -> None:
        if outcome is not None:
            with self._isolate_failure(job):
                if not self._has_ended:
                    self._at_first_end()
                self._has_ended = True
                job.end(outcome)
                self._jobs.remove(job)

    @contextmanager
    def _isolate_failure(self, job: JobTraining) -> Iterator[None]:
        """Let an error end one job and no other."""
        with isolate_failure(self._channel, job.job_id) as failures:
            yield
        if failures:
            with suppress(ValueError):
                self._jobs.remove(job)

    def _lowest_position(self) -> int:
        return min(job.tokens_seen for job in self._jobs)

    def _slots_in_use(self) -> list[int]:
        return sorted({job.slot for job in self._jobs})

    def _stream(self, slots: list[int], start_tokens: int) -> Generator[tuple[Vectors, ...]]:
        yield from self._slots.source.stream(self._slots.configs(slots), start_tokens=start_tokens)


@contextmanager
def isolate_failure(channel: SupervisorChannel, job_id: int) -> Iterator[list[Failure]]:
    """Let an error end one job and no other: report it, and leave it in the list that is given."""
    failures: list[Failure] = []
    try:
        yield failures
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one job's
        failures.append(Failure.of(error))
        channel.send(failures[0], job_id)
        if not isinstance(error, OrchError):  # what a person can mend has a message, and that is logged as it is sent
            traceback.print_exc()


def _timed(batches: Iterator[tuple[Vectors, ...]]) -> Iterator[tuple[tuple[Vectors, ...], float]]:
    """Yield each batch with the seconds it took to get it."""
    while True:
        started = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - started
