"""The jobs of one trainer on one stream of activations: each takes its own step on every batch they share."""

import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from torch import Tensor

from orchestrator.errors import SubjectError
from worker.activations.source import HookSlots
from worker.protocol import Exit, Failure
from worker.trainer.channel import SupervisorChannel
from worker.trainer.job import CaptureCost, JobTraining


class SharedTraining:
    """Members on one stream, which starts where the hindmost stands; others join when it reaches their place.

    Whatever becomes of one, the others take the same steps on the same batches as they would alone.
    """

    def __init__(
        self, members: Sequence[JobTraining], line: SupervisorChannel, *, places: HookSlots, save_every: float
    ) -> None:
        """Gather the members; nothing is captured yet."""
        self._members, self._line, self._places = [*members], line, places
        self._save_every, self._saved_at = save_every, time.monotonic()

    def run(self) -> Exit:
        """Train until no member is left, or until told to yield."""
        for member in tuple(self._members):  # one that was resumed may have come to its end before
            self._settle(member, member.verdict())
        while self._members:
            needed = self._needed()
            try:
                self._follow(needed)
            except SubjectError:
                if not self._parts_with_the_unreadable(needed):
                    raise
            if self._line.must_yield:
                self._save(self._members)
                return Exit.YIELDED
        return Exit.DONE

    def _follow(self, needed: list[int]) -> None:
        """Go along one stream until it is no longer the one to read."""
        position = min(member.tokens_seen for member in self._members)
        with closing(self._stream(needed, position)) as batches:
            for values, seconds in _timed(batches):
                position = self._round(dict(zip(needed, values, strict=True)), position, seconds)
                if self._line.must_yield or not self._goes_on(needed, position):
                    return

    def _parts_with_the_unreadable(self, needed: list[int]) -> bool:
        """End those whose own place cannot be read; a stream of several places does not say whose it was."""
        before, position = len(self._members), min(member.tokens_seen for member in self._members)
        for place in needed:
            for member in [member for member in self._members if member.place == place]:
                with self._apart(member), closing(self._stream([place], position)) as batches:
                    next(batches)
        return len(self._members) < before

    def _round(self, batches: dict[int, Tensor], position: int, seconds: float) -> int:
        """Let everybody who stands at the position take a step; return the position after it."""
        present = [member for member in self._members if member.tokens_seen == position]
        share = self._share(batches, len(present), seconds)
        for member in present:
            with self._apart(member):
                self._settle(member, member.step(batches[member.place], share))
        self._heed()
        if time.monotonic() - self._saved_at >= self._save_every:
            self._save(member for member in present if member in self._members)
        return position + len(next(iter(batches.values())))

    def _save(self, members: Iterable[JobTraining]) -> None:
        for member in tuple(members):
            with self._apart(member):
                member.save()
        self._saved_at = time.monotonic()

    def _heed(self) -> None:
        """Let go whom the supervisor wishes to leave."""
        for wish in self._line.wishes():
            for member in [member for member in self._members if member.job_id == wish.job_id]:
                with self._apart(member):
                    member.leave(save=wish.save)
                    self._members.remove(member)

    def _settle(self, member: JobTraining, outcome: str | None) -> None:
        """Let a member go whose training has come to something."""
        if outcome is not None:
            with self._apart(member):
                member.end(outcome)
                self._members.remove(member)

    @contextmanager
    def _apart(self, member: JobTraining) -> Iterator[None]:
        """Let an error end one member, and nobody else."""
        with apart(self._line, member.job_id) as failed:
            yield
        if failed:
            with suppress(ValueError):
                self._members.remove(member)

    def _needed(self) -> list[int]:
        return sorted({member.place for member in self._members})

    def _goes_on(self, needed: list[int], position: int) -> bool:
        """Say whether this stream is still the one to read."""
        if all(member.tokens_seen != position for member in self._members):
            return False  # those who are left stand further on
        # A stream that reads less costs less, and between two windows changing to it costs nothing.
        window = self._places.all[0].config.training.shuffle_tokens
        return position % window != 0 or self._needed() == needed

    def _stream(self, needed: list[int], start: int) -> Generator[tuple[Tensor, ...]]:
        yield from self._places.material.stream(self._places.configs(needed), start_tokens=start)

    def _share(self, batches: dict[int, Tensor], n_present: int, seconds: float) -> CaptureCost:
        """Return each one's part: what is read is read once."""
        per_vector = self._places.material.flops(self._places.configs([*batches]))
        n_vectors = len(next(iter(batches.values())))
        return CaptureCost(seconds / n_present, per_vector * n_vectors / n_present)


@contextmanager
def apart(line: SupervisorChannel, job_id: int) -> Iterator[list[Failure]]:
    """Let an error end one job, and nobody else; what it was is in the list afterwards."""
    failed: list[Failure] = []
    try:
        yield failed
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one job's
        traceback.print_exc()
        failed.append(Failure.of(error))
    if failed:
        line.send(failed[0], job_id)


def _timed(batches: Iterator[tuple[Tensor, ...]]) -> Iterator[tuple[tuple[Tensor, ...], float]]:
    while True:
        started = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - started
