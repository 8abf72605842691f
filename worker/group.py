"""The attempts that share one trainer, from their claims to their ends: most often it is one."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from orchestrator import caches, queue, shelf
from orchestrator.errors import StorageError
from worker.attempt import Attempt
from worker.closing import Surroundings
from worker.process import OOM_KILLED, TrainerProcess
from worker.protocol import Cached, Failure, Order, Said
from worker.watch import TICK_SECONDS, Watch

LISTEN_SECONDS = 1.0
"""The longest that messages are heard without a look at leases and wishes: each may take a slow database a while."""


class Group:
    """Claimed jobs of one stream of activations while this worker has them; most often it is one job."""

    def __init__(self, claims: Sequence[queue.Claim], around: Surroundings) -> None:
        """Take over claims."""
        self._around, self._settings = around, around.settings
        self._watch = Watch([Attempt(claim, around) for claim in claims], around)
        self._failure: Failure | None = None

    def run(self) -> None:
        """Train to the end, or to the moment somebody wants otherwise, and write down of each which it was."""
        code, log = self._train()
        for attempt in tuple(self._watch.ours):
            with self._watch.fenced(attempt):
                attempt.settle(code, self._failure, log)

    def give_up(self, error: str) -> None:
        """Close what is open after an error of the supervisor's own."""
        for attempt in self._watch.ours:
            with suppress(queue.LeaseLost):
                attempt.give_up(error)

    def _train(self) -> tuple[int, Path]:
        leader, *companions = self._watch.ours
        child = TrainerProcess(self._order(), log=leader.log)
        try:
            for attempt in companions:
                _link(attempt.log, leader.log)
            for attempt in self._watch.ours:
                attempt.introduce(child.pid)
            while not child.ended:
                self._listen(child)
                self._watch.mind(child)
        finally:
            code = child.close()
        if child.oom_killed:
            code, self._failure = OOM_KILLED.code, self._failure or OOM_KILLED
        return code, leader.log

    def _order(self) -> Order:
        home = self._settings.home
        return Order(
            jobs=tuple(attempt.assignment() for attempt in self._watch.ours),
            tokens_folder=str(home / "tokens"),
            compile_folder=str(home / "compile"),
            device=self._around.device,
            threads=self._around.threads,
            checkpoint_seconds=self._settings.checkpoint_seconds,
            supervisor=os.getpid(),
            compile=self._settings.compile,
            caches_folder=str(shelf.folder(home)),
            cache_bytes=self._settings.cache_limit,
        )

    def _listen(self, child: TrainerProcess) -> None:
        """Hear all that waits to be heard, so that no backlog grows while the database is slow."""
        until = time.monotonic() + LISTEN_SECONDS
        said = child.next(TICK_SECONDS)
        while said is not None:
            self._hear(child, said)
            said = child.next(0) if time.monotonic() < until else None

    def _hear(self, child: TrainerProcess, said: Said) -> None:
        if said.job_id is None and isinstance(said.message, Failure):
            self._failure = said.message
        if isinstance(said.message, Cached):
            _note(self._around, said.message)
        for attempt in self._watch.active:
            if attempt.job_id == said.job_id:
                with self._watch.fenced(attempt, child):
                    attempt.hear(said.message)


def _link(path: Path, log: Path) -> None:
    """Let the log be found under every job it tells of, where links can be made."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(log, path.parent))


def _note(around: Surroundings, cached: Cached) -> None:
    """Write down what a cache holds: for people, so that while the database is away it is not."""
    with suppress(StorageError):
        caches.remember(around.engine, **asdict(cached))
