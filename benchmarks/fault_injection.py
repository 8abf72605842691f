"""Inject faults into a soak: kills, freezes, stops, cancels and outages, one at a time, at random and seeded."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from sqlalchemy import select

from benchmarks.outages import Probe, Server
from benchmarks.sick_hosts import SickHosts
from benchmarks.worker_processes import WorkerProcess, WorkerProcesses, is_gone
from orchestrator import queue
from orchestrator.database.engine import reading
from orchestrator.database.models import Attempt, LeaseRow
from orchestrator.errors import OrchError
from orchestrator.settings import Settings

WEIGHTS = {
    "kill worker": 6, "kill trainer": 6, "kill evaluation": 4, "freeze worker": 3, "freeze trainer": 1,
    "freeze evaluation": 0.5, "stop worker": 1, "cancel": 2,
}  # fmt: skip
OUTAGE_WEIGHTS = {"kill redis": 0.5, "kill postgres": 0.5}
SICK_WEIGHTS = {"read-only artifacts": 4, "read-only logs": 2, "full disk": 1, "lost logs": 1}
STALL_WEIGHTS = {"freeze redis": 0.5, "freeze postgres": 0.5}
MIN_POLLERS = 2
"""Workers that have polled the queue for long enough to release expired leases, and that are left alone: with fewer, a
lost job waits for a free worker, which says nothing about the queue."""
KILLS = ("kill worker", "kill trainer", "kill evaluation", "kill redis", "kill postgres")


class Kill(NamedTuple):
    """A worker that was killed: whatever it held must be claimed again."""

    worker: str
    at: float


class Cancel(NamedTuple):
    """A running job that was asked to cancel, and the trainer that must end."""

    job_id: int
    at: float
    worker: WorkerProcess
    trainer: psutil.Process


class Cancels:
    """Cancels that were asked for, until their trainers have ended."""

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
        """See which trainers have ended."""
        for cancel in [*self._open]:
            if is_gone(cancel.trainer):
                self._open.remove(cancel)
                self.seconds.append(time.time() - cancel.at)

    def forget(self, worker: WorkerProcess | None = None) -> None:
        """Stop measuring the cancels of a worker, or all of them: another fault disturbs them."""
        self._open = [cancel for cancel in self._open if worker is not None and cancel.worker is not worker]


class FaultInjector:
    """Injects faults into workers and servers."""

    def __init__(
        self,
        processes: WorkerProcesses,
        probe: Probe,
        settings: Settings,
        servers: Sequence[Server],
        *,
        seed: int,
        every: float,
        sick: bool = False,
    ) -> None:
        """Prepare; `every` is the mean time between two faults, in seconds. With `sick`, disks and servers fail too."""
        self._processes, self._probe, self._settings, self._servers = processes, probe, settings, servers
        self._engine = probe.engine
        self._random, self._every = random.Random(seed), every
        self._next_at = time.monotonic() + every
        self.done: Counter[str] = Counter()
        self.kills: list[Kill] = []
        self.cancels = Cancels()
        self._weights = WEIGHTS | (OUTAGE_WEIGHTS if servers else {})
        self._hosts = SickHosts(settings, self._random)
        if sick:
            self._weights |= SICK_WEIGHTS | (STALL_WEIGHTS if servers else {})
        self._actions: dict[str, Callable[[], bool]] = {
            "kill worker": self._kill_worker,
            "kill trainer": lambda: self._kill_child("trainer"),
            "kill evaluation": lambda: self._kill_child("evaluation"),
            "freeze worker": self._freeze_worker,
            "freeze trainer": lambda: self._freeze_child("trainer"),
            "freeze evaluation": lambda: self._freeze_child("evaluation"),
            "stop worker": self._stop_worker,
            "cancel": self._cancel,
            "kill redis": lambda: self._kill_server("redis"),
            "kill postgres": lambda: self._kill_server("postgres"),
            "freeze redis": lambda: self._freeze_server("redis"),
            "freeze postgres": lambda: self._freeze_server("postgres"),
            "read-only artifacts": lambda: self._make_read_only(settings.artifacts_folder),
            "read-only logs": lambda: self._make_read_only(settings.logs_folder),
            "full disk": self._hosts.fill_the_disk,
            "lost logs": self._hosts.lose_logs,
        }
        self._frozen: list[tuple[float, psutil.Process]] = []

    @property
    def killed(self) -> int:
        """Return the number of kills of every kind."""
        return sum(self.done[name] for name in KILLS)

    @property
    def injected(self) -> int:
        """Return the number of faults of every kind; a cancel is none."""
        return sum(count for name, count in self.done.items() if name != "cancel")

    def inject(self) -> None:
        """Inject the next fault, if it is due."""
        self.tick()
        if time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + self._random.expovariate(1 / self._every)
        (name,) = self._random.choices([*self._weights], [*self._weights.values()])
        with suppress(psutil.NoSuchProcess, OrchError):  # gone by itself, or the database is away
            self.done[name] += self._actions[name]()

    def tick(self) -> None:
        """Resume what was frozen for long enough, mend disks, restart servers, and see which trainers have ended."""
        self._hosts.tick()
        for server in self._servers:
            outage = server.restart_when_due()
            if outage and server.name == "postgres":  # however short: whoever met it pollers nobody for a lease
                self._probe.outages.append(outage)
        for until, process in [*self._frozen]:
            if time.time() >= until:
                self._frozen.remove((until, process))
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)
        self.cancels.tick()

    def end(self) -> None:
        """Inject nothing more, and wait until all that is frozen or down is back."""
        while (
            any(server.is_away for server in self._servers)
            or self._frozen
            or self.cancels.are_open
            or self._hosts.are_there
        ):
            self.tick()
            self._processes.tick()
            time.sleep(0.02)

    def _replaceable_worker(self) -> WorkerProcess | None:
        """Return a worker that may be stopped, with a trainer if possible; MIN_POLLERS others stay."""
        up = [worker for worker in self._processes.workers if worker.is_up]
        pollers = self._processes.polling_for(1.2 * self._settings.lease_seconds, since=self._probe.answers_since)
        able = [worker for worker in up if sum(poller is not worker for poller in pollers) >= MIN_POLLERS]
        busy = [worker for worker in able if worker.trainer]
        return self._random.choice(busy or able) if able else None

    def _kill_worker(self) -> bool:
        worker = self._replaceable_worker()
        if worker is None:
            return False
        self.cancels.forget(worker)
        at = time.time()
        worker.kill()
        self.kills.append(Kill(worker.name, at))
        return True

    def _stop_worker(self) -> bool:
        worker = self._replaceable_worker()
        if worker is None:
            return False
        self.cancels.forget(worker)
        worker.process.terminate()
        return True

    def _freeze_worker(self) -> bool:
        worker = self._replaceable_worker()
        if worker is None:
            return False
        self.cancels.forget(worker)
        lease = self._settings.lease_seconds + self._settings.grace_seconds
        worker.freeze(self._random.uniform(1.1, 2) * lease)
        return True

    def _child(self, what: str) -> tuple[WorkerProcess, psutil.Process] | None:
        workers = [worker for worker in self._processes.workers if worker.is_up]
        found = [(worker, child) for worker in workers if (child := worker.child(what))]
        return self._random.choice(found) if found else None

    def _kill_child(self, what: str) -> bool:
        found = self._child(what)
        if found is None:
            return False
        self.cancels.forget(found[0])
        found[1].kill()
        return True

    def _freeze_child(self, what: str) -> bool:
        found = self._child(what)
        if found is None:
            return False
        self.cancels.forget(found[0])
        found[1].suspend()
        self._frozen.append((time.time() + self._random.uniform(0.5, 2) * self._settings.stall_seconds, found[1]))
        return True

    def _cancel(self) -> bool:
        """Cancel a job that has a trainer, or an evaluation, for itself."""
        found = self._child(self._random.choice(("trainer", "evaluation")))
        jobs = self._jobs_of(found[0]) if found else []
        if found is None or len(jobs) != 1:
            return False
        worker, trainer = found
        if worker.trainer != trainer:
            return False  # its trainer has ended meanwhile
        at = time.time()
        queue.cancel(self._engine, jobs)
        self.cancels.watch(Cancel(jobs[0], at, worker, trainer))
        return True

    def _jobs_of(self, worker: WorkerProcess) -> list[int]:
        mine = (Attempt.job_id == LeaseRow.job_id) & (Attempt.attempt == LeaseRow.attempt)
        with reading(self._engine) as session:
            return [*session.scalars(select(LeaseRow.job_id).join(Attempt, mine).where(Attempt.worker == worker.name))]

    def _make_read_only(self, folder: Path) -> bool:
        up = [worker for worker in self._processes.workers if worker.is_up]
        folder.mkdir(parents=True, exist_ok=True)
        return bool(up) and self._hosts.make_read_only(self._random.choice(up), folder)

    def _freeze_server(self, name: str) -> bool:
        server = next(server for server in self._servers if server.name == name)
        if server.is_away:
            return False
        if name == "postgres":
            self.cancels.forget()
        server.freeze(seconds=self._random.uniform(0.5, 8))
        return True

    def _kill_server(self, name: str) -> bool:
        server = next(server for server in self._servers if server.name == name)
        if server.is_away:
            return False
        if name == "postgres":
            self.cancels.forget()
        server.kill(seconds=self._random.uniform(0.1, 3))
        return True
