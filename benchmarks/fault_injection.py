"""What goes wrong in a soak: kills, freezes, stops, cancels and outages, one at a time, at random and seeded."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import psutil
from sqlalchemy import select

from benchmarks.outages import Probe, Server
from benchmarks.worker_processes import Crew, Hand, is_gone
from orchestrator import queue
from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt, LeaseRow
from orchestrator.errors import OrchError
from orchestrator.settings import Settings

WEIGHTS = {"kill worker": 6, "kill trainer": 6, "freeze worker": 3, "freeze trainer": 1, "stop worker": 1, "cancel": 2}
OUTAGE_WEIGHTS = {"kill redis": 0.5, "kill postgres": 0.5}
LEFT = 2
"""So many workers are not taken away at once, who have looked on for long enough to judge the leases of the others:
with fewer, what was lost waits for a free worker, which says nothing about the queue."""
KILLS = ("kill worker", "kill trainer", "kill redis", "kill postgres")


class Kill(NamedTuple):
    """A worker that was killed: whatever it held must be claimed again."""

    worker: str
    at: float


class Cancel(NamedTuple):
    """A running job whose cancel was asked, and the trainer that must go."""

    job_id: int
    at: float
    hand: Hand
    trainer: psutil.Process


class Cancels:
    """Cancels that were asked, until their trainers have gone."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        """From the asking to the end of the trainer, where nothing else disturbed that worker meanwhile."""
        self._open: list[Cancel] = []

    @property
    def are_open(self) -> bool:
        return bool(self._open)

    def watch(self, cancel: Cancel) -> None:
        self._open.append(cancel)

    def tick(self) -> None:
        """See which trainers have gone."""
        for cancel in [*self._open]:
            if is_gone(cancel.trainer):
                self._open.remove(cancel)
                self.seconds.append(time.time() - cancel.at)

    def forget(self, hand: Hand | None = None) -> None:
        """Measure no more those of a worker, or of all, which are disturbed in another way as well."""
        self._open = [cancel for cancel in self._open if hand is not None and cancel.hand is not hand]


class Havoc:
    """Disturbs a crew and its servers."""

    def __init__(
        self, crew: Crew, probe: Probe, settings: Settings, servers: Sequence[Server], *, seed: int, every: float
    ) -> None:
        """Prepare; `every` is the mean time between two disturbances, in seconds."""
        self._crew, self._probe, self._settings, self._servers = crew, probe, settings, servers
        self._engine = probe.engine
        self._random, self._every = random.Random(seed), every
        self._next_at = time.monotonic() + every
        self.done: Counter[str] = Counter()
        self.kills: list[Kill] = []
        self.cancels = Cancels()
        self._weights = WEIGHTS | (OUTAGE_WEIGHTS if servers else {})
        self._acts: dict[str, Callable[[], bool]] = {
            "kill worker": self._kill_worker,
            "kill trainer": self._kill_trainer,
            "freeze worker": self._freeze_worker,
            "freeze trainer": self._freeze_trainer,
            "stop worker": self._stop_worker,
            "cancel": self._cancel,
            "kill redis": lambda: self._kill_server("redis"),
            "kill postgres": lambda: self._kill_server("postgres"),
        }
        self._frozen: list[tuple[float, psutil.Process]] = []

    @property
    def killed(self) -> int:
        """Return the number of kills of every kind."""
        return sum(self.done[name] for name in KILLS)

    def act(self) -> None:
        """Disturb something, if it is time to."""
        self.tick()
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + self._random.expovariate(1 / self._every)
        (name,) = self._random.choices([*self._weights], [*self._weights.values()])
        with suppress(psutil.NoSuchProcess, OrchError):  # gone by itself, or the database is away
            self.done[name] += self._acts[name]()

    def tick(self) -> None:
        """Let what is frozen or away come back, and see which trainers have gone."""
        for server in self._servers:
            outage = server.mend()
            if outage and server.name == "postgres":  # however short: whoever met it judges nobody for a lease
                self._probe.outages.append(outage)
        for until, process in [*self._frozen]:
            if time.time() >= until:
                self._frozen.remove((until, process))
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)
        self.cancels.tick()

    def end(self) -> None:
        """Disturb nothing more; what is frozen or away comes back."""
        while any(server.is_away for server in self._servers) or self._frozen or self.cancels.are_open:
            self.tick()
            self._crew.tick()
            time.sleep(0.02)

    def _victim(self) -> Hand | None:
        """Return a worker that may be taken away, at work if possible; LEFT others stay."""
        up = [hand for hand in self._crew.hands if hand.is_up]
        judges = self._crew.judges(1.2 * self._settings.lease_seconds, since=self._probe.answers_since)
        able = [hand for hand in up if sum(judge is not hand for judge in judges) >= LEFT]
        busy = [hand for hand in able if hand.trainer]
        return self._random.choice(busy or able) if able else None

    def _kill_worker(self) -> bool:
        hand = self._victim()
        if hand is None:
            return False
        self.cancels.forget(hand)
        at = time.time()
        hand.kill()
        self.kills.append(Kill(hand.name, at))
        return True

    def _stop_worker(self) -> bool:
        hand = self._victim()
        if hand is None:
            return False
        self.cancels.forget(hand)
        hand.process.terminate()
        return True

    def _freeze_worker(self) -> bool:
        hand = self._victim()
        if hand is None:
            return False
        self.cancels.forget(hand)
        lease = self._settings.lease_seconds + self._settings.grace_seconds
        hand.freeze(self._random.uniform(1.1, 2) * lease)
        return True

    def _trainer(self) -> tuple[Hand, psutil.Process] | None:
        found = [(hand, trainer) for hand in self._crew.hands if hand.is_up and (trainer := hand.trainer)]
        return self._random.choice(found) if found else None

    def _kill_trainer(self) -> bool:
        found = self._trainer()
        if found is None:
            return False
        self.cancels.forget(found[0])
        found[1].kill()
        return True

    def _freeze_trainer(self) -> bool:
        found = self._trainer()
        if found is None:
            return False
        self.cancels.forget(found[0])
        found[1].suspend()
        self._frozen.append((time.time() + self._random.uniform(0.5, 2) * self._settings.stall_seconds, found[1]))
        return True

    def _cancel(self) -> bool:
        """Cancel a job that has a trainer for itself."""
        found = self._trainer()
        jobs = self._jobs_of(found[0]) if found else []
        if found is None or len(jobs) != 1:
            return False
        hand, trainer = found
        if hand.trainer != trainer:
            return False  # the one whose job it is has gone meanwhile
        at = time.time()
        queue.cancel(self._engine, jobs)
        self.cancels.watch(Cancel(jobs[0], at, hand, trainer))
        return True

    def _jobs_of(self, hand: Hand) -> list[int]:
        mine = (Attempt.job_id == LeaseRow.job_id) & (Attempt.attempt == LeaseRow.attempt)
        with reading(self._engine) as session:
            return [*session.scalars(select(LeaseRow.job_id).join(Attempt, mine).where(Attempt.worker == hand.name))]

    def _kill_server(self, name: str) -> bool:
        server = next(server for server in self._servers if server.name == name)
        if server.is_away:
            return False
        if name == "postgres":
            self.cancels.forget()
        server.kill(seconds=self._random.uniform(0.1, 3))
        return True
